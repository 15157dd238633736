"""Real data, read from packages that ship it; nothing of a package is installed or kept in git.

What leaves: sentences with how positive people found them (C. J. Hutto's corpus of film and product
reviews, tweets and editorials, MIT), and insured people with how often they saw a doctor in a year
(RAND's health insurance experiment, public domain).
"""

from __future__ import annotations

import fnmatch
import tarfile

import numpy as np

from benchmarks.models import package_file


def opinions() -> tuple[list[str], np.ndarray]:
    """Sentences, and their mean rating from -4 to 4, in the order of the files' names."""
    archive = package_file("vaderSentiment==0.5", "*/hutto_ICWSM_2014.tar.gz")
    texts: list[str] = []
    ratings: list[float] = []
    with tarfile.open(archive) as files:
        names = fnmatch.filter(files.getnames(), "*Snippets_GroundTruth.txt")
        for name in sorted([*names, *fnmatch.filter(files.getnames(), "*tweets_GroundTruth.txt")]):
            file = files.extractfile(name)
            assert file is not None  # these are regular files
            for line in file.read().decode("utf-8", "replace").splitlines():
                parts = line.split("\t", 2)
                if len(parts) == 3 and parts[2].strip():
                    texts.append(parts[2].strip())
                    ratings.append(float(parts[1]))
    return texts, np.array(ratings)


def visits() -> tuple[np.ndarray, np.ndarray]:
    """Nine numbers a person in float32 (plan, health, age ...), and visits to a doctor."""
    file = package_file("statsmodels==0.14.5", "*/randhie.csv")
    table = np.loadtxt(file, delimiter=",", skiprows=1)
    return table[:, 1:].astype(np.float32), table[:, 0]
