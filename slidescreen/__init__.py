"""Screens the leukocytes of a scanned blood smear for blasts and atypical cells.

Research use; a pre-classification that needs review by a morphologist. The command line is the usual way in; from Python:

    from pathlib import Path
    from slidescreen.batch import RunOptions, run_batch
    from slidescreen.classify import load_classifier
    from slidescreen.config import Settings
    from slidescreen.model import DEFAULT_MODEL, find_model

    settings = Settings()
    classifier = load_classifier(find_model(DEFAULT_MODEL), settings.classify)
    for outcome in run_batch([Path("scan.tif")], classifier, settings, RunOptions(Path("out"))):
        print(outcome)
"""

from importlib.metadata import version

__version__ = version("slidescreen")
