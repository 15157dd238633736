"""scikit-learn pipelines and LightGBM ensembles, fitted to seeded data and converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

FEATURES, ROWS = 20, 2000
_OPSETS = {"": 20, "ai.onnx.ml": 3}


def _data(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Rows of normal features, and three classes that depend on some of them in a curved way."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, FEATURES)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 3] + 0.3 * rng.standard_normal(rows)
    return x, np.digitize(score, np.quantile(score, [1 / 3, 2 / 3]))


def _converted(pipeline: Any, x: Any, y: np.ndarray, kind: Any = None) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    pipeline.fit(x, y)
    classifier = hasattr(pipeline, "predict_proba") or hasattr(pipeline, "decision_function")
    proto = convert_sklearn(
        pipeline,
        initial_types=[("x", kind or FloatTensorType([None, FEATURES]))],
        target_opset=_OPSETS,
        options={id(pipeline): {"zipmap": False}} if classifier else None,
    )
    return bytes(proto.SerializeToString())


def _scaled(model: Any) -> bytes:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _converted(make_pipeline(StandardScaler(), model), *_data())


def logistic() -> bytes:
    """Scaler and logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return _scaled(LogisticRegression())


def mlp() -> bytes:
    """Scaler and a network of two hidden layers."""
    from sklearn.neural_network import MLPClassifier

    return _scaled(MLPClassifier((64, 32), max_iter=60, random_state=0))


def pca_svc() -> bytes:
    """Eight principal components and a support vector machine with a Gaussian kernel."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    return _converted(make_pipeline(PCA(8, random_state=0), SVC()), *_data())


def kmeans() -> bytes:
    """The nearest of eight centres."""
    from sklearn.cluster import KMeans

    return _converted(KMeans(8, n_init=1, random_state=0), *_data())


def knn() -> bytes:
    """A vote of the five nearest of two thousand rows."""
    from sklearn.neighbors import KNeighborsClassifier

    return _converted(KNeighborsClassifier(5), *_data())


def forest() -> bytes:
    """A random forest of a hundred trees; leaves of three rows or more, so that no vote is tied."""
    from sklearn.ensemble import RandomForestClassifier

    return _converted(RandomForestClassifier(100, min_samples_leaf=3, random_state=0), *_data())


def tfidf() -> bytes:
    """Texts to word frequencies to a logistic regression."""
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from benchmarks.catalogue.exported import sentences

    rng = np.random.default_rng(0)
    texts = sentences(rng, (500,))
    classes = np.array([text.count("word1") % 3 for text in texts])
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression())
    return _converted(pipeline, texts, classes, StringTensorType([None, 1]))


def lightgbm(trees: int) -> bytes:
    """Gradient boosting: trees of 31 leaves, two classes."""
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    x, y = _data(20_000)  # fewer are learnt by heart, and later trees find nothing to split
    model = LGBMClassifier(n_estimators=trees, random_state=0, n_jobs=2, verbose=-1)
    model.fit(x, (y > 0).astype(int))
    proto = convert_lightgbm(
        model,
        initial_types=[("x", FloatTensorType([None, FEATURES]))],
        target_opset=15,
        zipmap=False,
    )
    return bytes(proto.SerializeToString())


RECIPES: Mapping[str, Callable[[], bytes]] = {
    "sk-logistic": logistic,
    "sk-mlp": mlp,
    "sk-pca-svc": pca_svc,
    "sk-kmeans": kmeans,
    "sk-knn": knn,
    "sk-forest-100": forest,
    "sk-tfidf": tfidf,
    "lightgbm-100": partial(lightgbm, 100),
    "lightgbm-1000": partial(lightgbm, 1000),
}
