"""Trainings that go wrong: what is refused, what is warned of, what is said of a loss of NaN."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_folders, small_config

from tlflax.config.schema import LossConfig
from tlflax.features.batches import Order
from tlflax.train import divergence, losses, setup, steps, train_and_evaluate
from tlflax.train import run as runs
from tlflax.utils.errors import UserError


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


@pytest.mark.parametrize('cache', ['auto', 'False'])
def test_loss_that_is_not_finite_names_step_batch_and_gradients(
    folders, tmp_path, monkeypatch, cache
):
    """Two labels, one of which has the larger gradient; the reference is autodiff by hand."""
    config = small_config(folders, optim__name='sgd', optim__learning_rate=1e12)
    config.model.head, config.model.units = 'mlp', 8
    config.features.cache = cache
    config.optim.labels = (
        ('backbone/.*', 'frozen'), ('head/hidden/.*', 'low'), ('head/.*', 'high'),
    )  # fmt: skip
    taken = []
    train = runs.train_epochs

    def seen(fit, source, rule, state, position):
        taken.append((fit.run, source, jax.device_get(state)))
        return train(fit, source, rule, state, position)

    monkeypatch.setattr(runs, 'train_epochs', seen)
    with pytest.raises(UserError) as caught:
        train_and_evaluate(config, tmp_path / 'w')
    said = re.search(
        r'no longer finite in step (\d+), epoch (\d+), with the batch (.*); the gradient norm '
        r"(before|of) it was (\S+) for 'high', (\S+) for 'low'",
        str(caught.value),
    )
    assert said, str(caught.value)
    step, epoch = int(said[1]), int(said[2])
    run, source, state = taken[0]
    assert epoch == (step - 1) // run.steps_per_epoch + 1
    assert said[4] == ('before' if step > 1 else 'of')
    order = Order(8, 0).train(epoch - 1, run.splits.train.labels)
    batch = order[(step - 1) % run.steps_per_epoch]
    first = [str(run.splits.train.paths[row]) for row in batch[batch >= 0]][:3]
    assert said[3].startswith(', '.join(first))
    assert epoch == 1
    state, sums, _ = run.runner.train(state, source, 0, limit=step - 2)
    assert np.isfinite(steps.totals(sums).loss if sums else 0)
    norms = {}
    learner = run.learner
    batch = first_batch(run, source, step - 2)

    def loss(params):
        variables = state.variables._replace(params=params).merge(run.runner.frozen)
        logits, _ = run.runner.classifier(variables, batch, training_of(run, state, batch))
        each = losses.training_losses(run.runner.loss, logits, batch)
        return (each * batch['mask']).sum() / batch['mask'].sum()

    gradients = jax.grad(loss)(state.params)
    for label, leaf in zip(
        jax.tree.leaves(learner.labels), jax.tree.leaves(gradients), strict=True
    ):
        norms[label] = norms.get(label, 0.0) + float(np.square(np.float64(leaf)).sum())
    assert float(said[5]) == pytest.approx(norms['high'] ** 0.5, rel=0.01)
    assert float(said[6]) == pytest.approx(norms['low'] ** 0.5, rel=0.01)


def first_batch(run, source, step):
    if hasattr(source, 'on_device'):
        return steps.gather(source.on_device, jnp.asarray(source.train_rows(0)[step]))
    batch = jax.tree.map(jnp.asarray, next(iter(source.train_batches(0, step))))
    if 'features' not in batch:
        frozen = run.runner.frozen.branch('backbone')
        batch = {**batch, 'features': run.runner.classifier.features(frozen, batch['image'])}
    return batch


def training_of(run, state, batch):
    from tlflax.models.base.modules import Training

    key = jax.random.fold_in(jax.random.key(run.config.train.seed), state.step)
    return Training(key, batch['mask'], frozenset())


def test_first_step_that_is_not_finite():
    def sums(*values):
        array = np.float32(values)
        return steps.Sums(array if len(values) > 1 else array[0], array, array)

    nan, inf = np.nan, np.inf
    assert divergence.first_step([]) is None
    assert divergence.first_step([sums(1), sums(2)]) is None
    assert divergence.first_step([sums(1), sums(nan), sums(inf)]) == 1
    assert divergence.first_step([sums(1, 2, 3), sums(4, inf, nan)]) == 4


@pytest.mark.parametrize('rate', [1e-3, 30.0])
def test_a_loss_far_above_guessing_is_a_warning(folders, tmp_path, caplog, rate):
    config = small_config(folders, train__epochs=2, optim__learning_rate=rate)
    result = train_and_evaluate(config, tmp_path / 'w')
    warned = [line for line in caplog.messages if 'times the loss of guessing (1.10)' in line]
    far = rate > 1
    assert (result['val']['loss'] > 100 * 1.1) == far
    assert len(warned) == 2 * far


def test_negative_rates_and_weights_are_refused():
    config = setup.configure({'optim': {'learning_rates': (('head', 0.0),)}})
    assert config.optim.learning_rates == (('head', 0.0),)
    with pytest.raises(UserError, match=r'config\.optim\.learning_rates: .* is too small'):
        setup.configure({'optim': {'learning_rates': (('head', 0.1), ('backbone', -1e-3))}})
    with pytest.raises(UserError, match=r'config\.loss\.weights_by_class: .* is too small'):
        setup.configure({'loss': {'weights_by_class': (('red', -1.0),)}})


@pytest.mark.parametrize(
    ('weights', 'refused'),
    [
        ((('red', 0.0), ('green', 0.0)), True),
        ((('red', 0.0), ('green', 1e-3)), False),
        ((('red', 0.0),), False),
    ],
)
def test_weights_that_are_all_zero_are_refused(weights, refused):
    config = LossConfig(class_weights='explicit', weights_by_class=weights)
    counts = np.array([5, 3])

    def build():
        return losses.build(config, smoothing=0.0, counts=counts, classes=('green', 'red'))

    if refused:
        with pytest.raises(UserError, match='nothing would be learned'):
            build()
    else:
        assert build().class_weight.max() > 0
