"""Early stopping against Keras's own callback, and the names of metrics."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from tlflax.train.early_stopping import EarlyStopping, State, resolve_mode, resolve_monitor
from tlflax.utils.errors import UserError

RECORD = ('train_loss', 'train_accuracy', 'val_loss', 'val_accuracy', 'learning_rate')


class FakeModel:
    """As much of a Keras model as the callback touches; its weights are the epoch's number."""

    def __init__(self):
        self.stop_training = False
        self.weights = None

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = weights


def run_keras(rule, values):
    """Returns (epochs run, stopped early, epoch whose weights Keras restores)."""
    callback = keras.callbacks.EarlyStopping(
        monitor='m',
        min_delta=rule.min_delta,
        patience=rule.patience,
        mode=rule.mode,
        baseline=rule.baseline,
        start_from_epoch=rule.start_from_epoch,
        restore_best_weights=True,
    )
    model = FakeModel()
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        model.weights = epoch
        callback.on_epoch_end(epoch, {'m': value})
        if model.stop_training:
            break
    restored = callback.best_weights
    callback.on_train_end()
    if restored is not None:
        assert model.weights == restored == callback.best_epoch
    return epoch + 1, model.stop_training, restored


def run_ours(rule, values, *, through_json=False, steps_per_epoch=8):
    """The same for our state machine, optionally saved and restored after every epoch."""
    state = rule.init()
    for epoch, value in enumerate(values):
        state = rule.update(state, value, epoch, (epoch + 1) * steps_per_epoch)
        if through_json:
            state = State.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
        if state.stopped:
            break
    return epoch + 1, state.stopped, state.best_epoch


def random_case(rng):
    """A rule and a sequence of metrics with plateaus, exact ties, NaN and infinities."""
    values = rng.choice(
        [
            rng.integers(0, 6, 16) / 10,  # ties, and differences of exactly min_delta
            rng.normal(size=16),
            np.cumsum(rng.normal(-0.1, 0.3, 16)),
        ]
    )
    for special in (math.nan, math.inf, -math.inf):
        if rng.random() < 0.3:
            values[rng.random(16) < rng.choice([0.1, 0.5])] = special
    rule = EarlyStopping(
        monitor='m',
        min_delta=float(rng.choice([0, 0.1, 0.2, 1e-4, 1.0])),
        patience=int(rng.integers(0, 6)),
        mode=str(rng.choice(['min', 'max'])),
        baseline=None if rng.random() < 0.5 else float(rng.choice([0.0, 0.2, 0.3, 0.5])),
        start_from_epoch=int(rng.choice([0, 0, 1, 3, 20])),
    )
    return rule, [float(value) for value in values[: rng.integers(1, 17)]]


def test_stops_and_restores_at_the_epochs_keras_does():
    rng = np.random.default_rng(0)
    seen = {'stopped': 0, 'ran on': 0, 'nothing monitored': 0, 'best not last': 0}
    for _ in range(4000):
        rule, values = random_case(rng)
        wanted = run_keras(rule, values)
        assert run_ours(rule, values) == wanted, (rule, values)
        assert run_ours(rule, values, through_json=True) == wanted, (rule, values)
        seen['stopped' if wanted[1] else 'ran on'] += 1
        seen['nothing monitored'] += wanted[2] is None
        seen['best not last'] += wanted[2] is not None and wanted[2] < wanted[0] - 1
    assert min(seen.values()) > 100, seen  # each kind of outcome was really compared


def rule(**changes):
    plain = EarlyStopping(
        monitor='val_loss', min_delta=0.0, patience=2, mode='min', baseline=None, start_from_epoch=0
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    ('rule', 'values', 'epochs_run', 'best_epoch'),
    [
        (rule(), [4, 3, 3, 3, 2, 2], 4, 1),  # two epochs without improvement, not three
        (rule(patience=0), [4, 3, 3, 2], 3, 1),
        (rule(patience=0, min_delta=1.0), [4, 3, 2], 2, 0),  # exactly min_delta is too little
        (rule(mode='max'), [0.1, 0.3, 0.2, 0.3], 4, 1),  # a tie is no improvement
        (rule(), [math.nan, 2, 1], 3, 0),  # as in Keras, nothing beats a NaN that came first
        (rule(), [2, math.nan, 1, math.nan, math.nan, 0], 5, 2),
        (rule(start_from_epoch=2), [0, 0, 5, 4, 6, 6, 6], 6, 3),  # earlier ones don't count
        (rule(baseline=1.0), [5, 4, 3, 3, 3], 4, 2),  # better, but never under the baseline
        (rule(baseline=1.0), [5, 0.5, 3, 0.4, 3, 3], 6, 3),
    ],
)
def test_by_hand(rule, values, epochs_run, best_epoch):
    run, _, best = run_ours(rule, values)
    assert (run, best) == (epochs_run, best_epoch)


@pytest.mark.parametrize(
    ('rule', 'values', 'steps_per_epoch', 'epochs_run', 'best_epoch'),
    [
        (rule(patience_steps=16), [4, 3, 3, 3, 2], 8, 4, 1),  # 2 epochs are 16 steps
        (rule(patience_steps=17), [4, 3, 3, 3, 3, 2], 8, 5, 1),  # 3 epochs are 24
        (rule(patience_steps=17), [4, 3, 3, 3, 2, 2, 2, 2, 1], 8, 8, 4),  # begins again
        (rule(patience_steps=17), [4, 3, 3, 3, 2], 8000, 4, 1),  # patience in epochs holds too
        (rule(patience=0, patience_steps=16), [3, 4, 4, 2], 8, 3, 0),
        (rule(min_steps=40), [4, 5, 5, 5, 5, 3], 8, 5, 0),
        (rule(min_steps=40), [4, 5, 5, 5, 3, 5, 5, 2], 8, 7, 4),
        (rule(min_steps=41), [4, 5, 5, 5, 5, 5], 8, 6, 0),
        (rule(min_steps=1), [4, 5, 5, 5], 8, 3, 0),
        (rule(start_from_epoch=2, patience_steps=24), [0, 0, 5, 6, 6, 6, 6], 8, 6, 2),
        # A baseline that no epoch beats: patience counts from the first monitored epoch.
        (rule(baseline=1.0, patience_steps=24), [5, 4, 4, 4, 4], 8, 3, 1),
        (
            rule(baseline=1.0, start_from_epoch=1, patience_steps=24),
            [9, 5, 4, 4, 4, 4],
            8,
            4,
            2,
        ),
    ],
)
def test_steps_by_hand(rule, values, steps_per_epoch, epochs_run, best_epoch):
    run, stopped, best = run_ours(rule, values, steps_per_epoch=steps_per_epoch)
    assert (run, best) == (epochs_run, best_epoch)
    assert stopped
    again = run_ours(rule, values, steps_per_epoch=steps_per_epoch, through_json=True)
    assert again == (run, stopped, best)


def test_steps_delay_the_stop_and_change_nothing_else():
    """The rule with steps ends at the first epoch at which its three conditions hold."""
    rng = np.random.default_rng(1)
    delayed = 0
    for _ in range(500):
        plain, values = random_case(rng)
        plain = dataclasses.replace(plain, baseline=None, start_from_epoch=0)
        per_epoch = int(rng.integers(1, 20))
        wanted = (int(rng.integers(0, 80)), int(rng.integers(0, 200)))
        counted = dataclasses.replace(plain, patience_steps=wanted[0], min_steps=wanted[1])
        endless, state, improved = dataclasses.replace(plain, patience=99), State(), []
        for epoch, value in enumerate(values):
            state = endless.update(state, value, epoch, 0)
            if state.improved:
                improved.append(epoch)
        last = {e: max(i for i in improved if i <= e) for e in range(len(values))}
        ends = [
            e for e in range(len(values))
            if e not in improved and e - last[e] >= plain.patience
            and (e - last[e]) * per_epoch >= wanted[0] and (e + 1) * per_epoch >= wanted[1]
        ]  # fmt: skip
        end = ends[0] if ends else len(values) - 1
        expected = (end + 1, bool(ends), last[end])
        assert run_ours(counted, values, steps_per_epoch=per_epoch) == expected
        delayed += expected[0] > run_ours(plain, values)[0]
    assert delayed > 100


def test_state_of_an_older_checkpoint():
    saved = {'best': 1.0, 'best_epoch': 0, 'wait': 1, 'stopped_epoch': None, 'improved': False}
    assert State.from_json(saved) == State(best=1.0, best_epoch=0, wait=1)


def test_state_says_what_happened_at_each_epoch():
    states = [rule().init()]
    for epoch, value in enumerate([3.0, 2.0, 2.5, 2.25]):
        states.append(rule().update(states[-1], value, epoch, 8 * epoch + 8))
    assert [state.improved for state in states] == [False, True, True, False, False]
    assert [state.wait for state in states] == [0, 0, 0, 1, 2]
    assert [state.wait_from for state in states] == [0, 8, 16, 16, 16]
    assert [state.best for state in states] == [None, 3.0, 2.0, 2.0, 2.0]
    assert [state.stopped_epoch for state in states] == [None, None, None, None, 3]
    assert [state.stopped for state in states] == [False] * 4 + [True]


@pytest.mark.parametrize('best', [None, 0.1, math.nan, math.inf, -math.inf])
def test_state_survives_strict_json(best):
    state = State(best=best, best_epoch=3, wait=2, wait_from=24, stopped_epoch=5, improved=False)
    text = json.dumps(state.to_json(), allow_nan=False)
    back = State.from_json(json.loads(text))
    assert repr(back) == repr(state)  # repr: NaN is not equal to itself


@pytest.mark.parametrize(
    ('asked', 'name'),
    [
        ('val_loss', 'val_loss'),
        ('val_acc', 'val_accuracy'),
        ('acc', 'train_accuracy'),
        ('accuracy', 'train_accuracy'),
        ('loss', 'train_loss'),
        ('train_acc', 'train_accuracy'),
    ],
)
def test_monitor_names(asked, name):
    assert resolve_monitor(asked, RECORD) == name


def test_a_metric_of_that_very_name_wins_over_the_alias():
    assert resolve_monitor('acc', (*RECORD, 'acc')) == 'acc'


def test_unknown_monitor_is_an_error_that_names_the_metrics():
    with pytest.raises(UserError) as caught:
        resolve_monitor('val_los', RECORD)
    message = str(caught.value)
    assert 'config.early_stopping.monitor' in message
    assert "'val_los'" in message
    assert "did you mean 'val_loss'?" in message
    assert all(name in message for name in RECORD)


@pytest.mark.parametrize(
    ('monitor', 'mode'),
    [
        ('val_loss', 'min'),
        ('train_loss', 'min'),
        ('val_accuracy', 'max'),
        ('val_balanced_accuracy', 'max'),
        ('val_auc', 'max'),
        ('val_recall', 'max'),
        ('val_macro_recall', 'max'),
        ('val_precision', 'max'),
        ('val_macro_f1', 'max'),
        ('val_worst_recall', 'max'),
        ('val_macro_auroc', 'max'),
        ('val_error', 'min'),
        ('val_expected_calibration_error', 'min'),
    ],
)
def test_auto_mode(monitor, mode):
    assert resolve_mode(monitor, 'auto') == mode
    assert resolve_mode(monitor, 'min') == 'min'
    assert resolve_mode(monitor, 'max') == 'max'


@pytest.mark.parametrize('monitor', ['learning_rate', 'epoch_seconds', 'lossless'])
def test_auto_mode_does_not_guess(monitor):
    with pytest.raises(UserError, match=r'config\.early_stopping\.mode.*min.*max') as caught:
        resolve_mode(monitor, 'auto')
    assert repr(monitor) in str(caught.value)
