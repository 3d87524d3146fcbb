"""Training losses: values and gradients against PyTorch, Keras, scikit-learn and float64."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from tlflax.config.parse import resolve
from tlflax.config.schema import LossConfig
from tlflax.train import losses
from tlflax.train.losses import Loss
from tlflax.utils.errors import UserError

CLASSES = ('green', 'red', 'yellow')
COUNTS = np.array([429, 723, 35])


def make(seed=0, n=32, classes=7, scale=5.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (n, classes)).astype(np.float32)
    return rng, logits, rng.integers(0, classes, n).astype(np.int32)


def value_and_gradient(loss, logits, batch):
    """Of the mean over the examples."""
    batch = jax.tree.map(jnp.asarray, batch)
    return jax.value_and_grad(lambda x: losses.training_losses(loss, x, batch).mean())(logits)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_is_pytorchs(smoothing):
    _, logits, label = make()
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(label).long(), reduction='none',
        label_smoothing=smoothing,
    )  # fmt: skip
    ours = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(label), smoothing)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_class_and_example_weights_are_pytorchs_sum_over_keras_number():
    """PyTorch's weighted sum; divided by the number of examples, as Keras's sample weights are."""
    rng, logits, label = make()
    by_class = rng.uniform(0, 3, 7).astype(np.float32)
    weight = rng.uniform(0, 2, 32).astype(np.float32)
    ours, gradient = value_and_gradient(
        Loss(class_weight=by_class), logits, {'label': label, 'weight': weight}
    )
    x = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        x, torch.tensor(label).long(), weight=torch.tensor(by_class), reduction='none'
    )
    theirs = (theirs * torch.tensor(weight)).sum() / 32
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad, atol=1e-6)
    kerass = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        ours, kerass(label, logits, sample_weight=by_class[label] * weight), rtol=1e-5
    )


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0, 5.0])
def test_focal_is_pytorch_autograds(gamma):
    _, logits, label = make(1)
    logits[:4] *= 20  # certain, rightly and wrongly
    ours, gradient = value_and_gradient(Loss(gamma=gamma), logits, {'label': label})
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(x, -1)[torch.arange(32), torch.tensor(label).long()]
    theirs = -((1 - log_p.exp()) ** gamma * log_p).mean()
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    expected = np.nan_to_num(x.grad.numpy())  # PyTorch's slope of 0^0.5 is infinite
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_focal_is_kerass(smoothing):
    _, logits, label = make(2, scale=2.0)  # Keras clips probabilities at 1e-7
    theirs = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=2.0, from_logits=True, label_smoothing=smoothing, reduction='none'
    )(np.eye(7, dtype=np.float32)[label], logits)
    loss = Loss(smoothing=smoothing, gamma=2.0)
    ours = losses.training_losses(loss, jnp.asarray(logits), {'label': jnp.asarray(label)})
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('gamma', [0.3, 1.0, 2.0])
def test_focal_of_a_certain_answer_has_a_finite_gradient(gamma):
    logits = jnp.array([[200.0, 0, 0], [0.0, 200, 0]])
    batch = {'label': jnp.array([0, 0])}
    value, gradient = value_and_gradient(Loss(gamma=gamma), logits, batch)
    np.testing.assert_allclose(value, 100, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-0.5, 0.5, 0]], atol=1e-6)


@pytest.mark.parametrize('tau', [0.5, 1.0, 2.0])
def test_logit_adjustment_in_float64(tau):
    """Menon et al. (2021), equation 10: log(1 + sum over y' of (pi_y'/pi_y)^tau e^(f_y' - f_y))."""
    _, logits, label = make(3, classes=3)
    built = losses.build(
        LossConfig(logit_adjustment=tau), smoothing=0.0, counts=COUNTS, classes=CLASSES
    )
    ours = losses.training_losses(built, jnp.asarray(logits), {'label': jnp.asarray(label)})
    prior, wide = COUNTS / COUNTS.sum(), logits.astype(np.float64)
    for f, y, value in zip(wide, label, ours, strict=True):
        others = [k for k in range(3) if k != y]
        expected = np.log1p(sum((prior[k] / prior[y]) ** tau * np.exp(f[k] - f[y]) for k in others))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_mixed_labels_are_pytorchs_soft_targets():
    """With class weights: each part of the target has its own class's, as in PyTorch."""
    rng, logits, label = make(4)
    other, mix = rng.integers(0, 7, 32).astype(np.int32), rng.random(32).astype(np.float32)
    by_class = rng.uniform(0, 3, 7).astype(np.float32)
    batch = {'label': label, 'mix_label': other, 'mix': mix}
    target = mix[:, None] * np.eye(7)[label] + (1 - mix[:, None]) * np.eye(7)[other]
    for weights in (None, by_class):
        ours, gradient = value_and_gradient(Loss(class_weight=weights), logits, batch)
        x = torch.tensor(logits, requires_grad=True)
        theirs = torch.nn.functional.cross_entropy(
            x, torch.tensor(target, dtype=torch.float32), reduction='sum',
            weight=None if weights is None else torch.tensor(weights),
        ) / 32  # fmt: skip
        theirs.backward()
        np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
        np.testing.assert_allclose(gradient, x.grad, atol=1e-6)


def test_everything_at_once_in_float64():
    rng, logits, label = make(5, n=16, classes=3, scale=2.0)
    other, mix = rng.integers(0, 3, 16).astype(np.int32), rng.random(16).astype(np.float32)
    weight, by_class = rng.random(16).astype(np.float32), rng.random(3).astype(np.float32)
    shift = np.log(COUNTS / COUNTS.sum()).astype(np.float32)
    ours = losses.training_losses(
        Loss(0.1, 2.0, by_class, shift), jnp.asarray(logits),
        jax.tree.map(
            jnp.asarray, {'label': label, 'mix_label': other, 'mix': mix, 'weight': weight}
        ),
    )  # fmt: skip
    shifted = logits.astype(np.float64) + shift
    p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    for i in range(16):
        expected = 0.0
        for share, y in ((mix[i], label[i]), (1 - mix[i], other[i])):
            target = 0.9 * np.eye(3)[y] + 0.1 / 3
            part = (target * (1 - p[i]) ** 2 * -np.log(p[i])).sum()
            expected += share * by_class[y] * part
        np.testing.assert_allclose(ours[i], weight[i] * expected, rtol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_balanced_weights_are_scikit_learns(seed):
    label = np.random.default_rng(seed).choice(5, 200, p=[0.5, 0.3, 0.15, 0.05, 0])
    counts, present = np.bincount(label, minlength=5), np.unique(label)
    ours = losses.balanced_weights(counts)
    np.testing.assert_allclose(
        ours[present], compute_class_weight('balanced', classes=present, y=label)
    )
    assert ours[counts == 0].tolist() == [1] * (5 - len(present))
    assert (ours[label]).mean() == pytest.approx(1)


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.999, 0.9999])
def test_effective_weights_are_the_papers(beta):
    ours = losses.effective_weights(np.array([429, 0, 723, 35]), beta)
    effective = (1 - beta ** COUNTS.astype(np.longdouble)) / (1 - np.longdouble(beta))
    theirs = 1 / effective
    np.testing.assert_allclose(ours[[0, 2, 3]], theirs * 3 / theirs.sum(), rtol=1e-10)
    assert ours[1] == 1


def test_effective_weights_are_balanced_in_the_limit():
    ours = losses.effective_weights(COUNTS, 1 - 1e-9)
    balanced = losses.balanced_weights(COUNTS)
    np.testing.assert_allclose(ours, balanced * 3 / balanced.sum(), rtol=1e-5)


def build(**keys):
    config = resolve({'loss': keys}).loss
    return losses.build(config, smoothing=0.0, counts=COUNTS, classes=CLASSES)


def test_explicit_weights_by_name():
    built = build(class_weights='explicit', weights_by_class=(('yellow', 5), ('green', 0.0)))
    np.testing.assert_array_equal(built.class_weight, [0, 1, 5])
    assert build() == Loss(0.0, None, None, None)


BAD = [
    ({'class_weights': 'explicit'}, 'weights_by_class', 'pairs'),
    ({'weights_by_class': (('red', 2.0),)}, 'class_weights', "'explicit'"),
    (
        {'class_weights': 'explicit', 'weights_by_class': (('Yellow', 2.0),)},
        'weights_by_class',
        "did you mean 'yellow'",
    ),
    (
        {'class_weights': 'explicit', 'weights_by_class': (('red', 2.0), ('red', 3.0))},
        'weights_by_class',
        '2 times',
    ),
    (
        {'class_weights': 'explicit', 'weights_by_class': (('red', -1.0),)},
        'weights_by_class',
        'at least 0',
    ),
    (
        {'class_weights': 'explicit', 'weights_by_class': (('red', float('nan')),)},
        'weights_by_class',
        'finite',
    ),
    ({'class_weights': 'balance'}, 'config.loss.class_weights', "did you mean 'balanced'"),
    ({'name': 'focl'}, 'config.loss.name', "did you mean 'focal'"),
    ({'gamma': -1.0}, 'config.loss.gamma', 'at least'),
    ({'effective_beta': 1.0}, 'config.loss.effective_beta', 'at most'),
]


@pytest.mark.parametrize(('keys', 'where', 'hint'), BAD, ids=str)
def test_mistakes_are_one_sentence(keys, where, hint):
    with pytest.raises(UserError) as error:
        build(**keys)
    assert where in str(error.value)
    assert hint in str(error.value)


def test_making_up_twice_is_said():
    def overlap(balanced_sampling=False, **keys):
        return losses.describe_overlap(LossConfig(**keys), balanced_sampling=balanced_sampling)

    assert overlap() is None
    assert overlap(balanced_sampling=True) is None
    assert overlap(class_weights='balanced', name='focal') is None
    both = overlap(balanced_sampling=True, class_weights='balanced')
    assert 'loss.class_weights' in both
    assert 'train.balanced_sampling' in both
    assert 'loss.logit_adjustment' in overlap(logit_adjustment=1.0, class_weights='effective')
