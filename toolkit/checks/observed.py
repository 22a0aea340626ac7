"""A set of images as one bundle sees it: its answers, its features, the images' own statistics. What drift is measured on.

Legend: N images, K labels, D features, S statistics.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from toolkit.backends.features import open_features
from toolkit.bundle import Bundle
from toolkit.checks.metrics import Predictions
from toolkit.data import ImageSet, load_pixels
from toolkit.data.image_statistics import all_image_statistics
from toolkit.data.images import content_digests
from toolkit.errors import UsageError

BATCH_SIZE = 64
UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class Observed:
    """N images through one bundle. Classes are the bundle's; a target of -1 is a label the bundle does not know, or none.

    `source` says what the features are; `digests` name the images' contents, 16 hexadecimal digits each; `new_labels` are
    the data's labels that the bundle does not know. `num_known` images were left out because they were known before.
    """

    predictions: Predictions
    features_ND: np.ndarray
    statistics_NS: np.ndarray
    keys: tuple[str, ...]
    slices: tuple[str, ...]
    digests: tuple[str, ...]
    source: str
    new_labels: tuple[str, ...] = ()
    num_known: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def is_labelled(self) -> bool:
        """Whether any image has a label that the bundle knows."""
        return bool((self.predictions.targets_N != UNLABELLED).any())

    def labelled(self) -> Predictions:
        """The predictions of the images whose label the bundle knows."""
        return self.predictions.take(self.predictions.targets_N != UNLABELLED)

    def entropies_N(self) -> np.ndarray:  # noqa: N802
        """Entropy of each answer, in nats."""
        return entropies(self.predictions)


def entropies(predictions: Predictions) -> np.ndarray:
    """Entropy (N,) of each answer, in nats."""
    return -(predictions.probabilities_NK * predictions.log_probabilities_NK).sum(axis=1)


def observe(
    bundle: Bundle, images: ImageSet, *, split: str, max_samples: int, seed: int = 0, known: Collection[str] = ()
) -> Observed:
    """Up to `max_samples` images of `split` (`all`: of every split), drawn by `seed`, in drawn order.

    Images whose content digest is among `known` are left out: one picture on both sides of a comparison is no evidence.
    Labels are matched by name; where none is the bundle's, the images count as unlabelled. Raises `UsageError` when no image
    is left, `InputRefused` when the model's outputs are not finite.
    """
    chosen = images if split == "all" else images.split(split)
    order = np.random.default_rng(seed).permutation(len(chosen))
    samples, digests = [chosen.samples[i] for i in order], []
    num_known = 0
    if known:
        digests = [digest[:16] for digest in content_digests(samples)]
        fresh = [i for i, digest in enumerate(digests) if digest not in known]
        num_known = len(samples) - len(fresh)
        samples, digests = [samples[i] for i in fresh], [digests[i] for i in fresh]
    samples = samples[:max_samples]
    if not samples:
        raise UsageError(
            f"data '{images.name}', split {split}: no images to look at"
            + (f"; all {num_known} are in the reference profile already. Give newer ones." if num_known else ".")
        )
    digests = digests[:max_samples] or [digest[:16] for digest in content_digests(samples)]
    return _seen(bundle, replace(chosen, samples=tuple(samples)), digests, num_known)


def _seen(bundle: Bundle, images: ImageSet, digests: list[str], num_known: int) -> Observed:
    statistics_NS = all_image_statistics(images.samples)
    pixels = load_pixels(images, bundle.manifest.preprocessing, max_unreadable=0.1)
    place = {sample.key: i for i, sample in enumerate(images.samples)}
    rows = [place[key] for key in pixels.keys]
    runner = open_features(bundle)
    answers = [
        runner(pixels.images_NCHW[start : start + BATCH_SIZE].numpy().astype(np.float32))
        for start in range(0, len(pixels), BATCH_SIZE)
    ]
    labels = bundle.manifest.labels
    to_class = np.array([labels.index(name) if name in labels else UNLABELLED for name in images.labels])
    shared = set(labels) & set(images.labels)
    return Observed(
        predictions=Predictions.from_logits(np.concatenate([a[0] for a in answers]), to_class[pixels.targets_N.numpy()]),
        features_ND=np.concatenate([a[1] for a in answers]),
        statistics_NS=statistics_NS[rows],
        keys=pixels.keys,
        slices=pixels.slices,
        digests=tuple(digests[i] for i in rows),
        source=runner.source,
        new_labels=tuple(sorted({images.labels[t] for t in pixels.targets_N.tolist()} - shared)) if shared else (),
        num_known=num_known,
    )
