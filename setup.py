"""The packages of the distribution; everything else is in pyproject.toml.

The experiments stand at the top of the source tree, where people edit them, and travel inside the package, where an installed
fdfa finds them (`fdfa_core.paths.EXPERIMENTS`). Setuptools can map a folder to a package only beside a full list of packages,
which is found here and not written by hand.
"""

from setuptools import find_packages, setup

EXPERIMENTS = "fdfa_core.experiments.files"
FOUND = find_packages(include=["fdfa_core*", "analysis*", "verification*", "figures*", "fdfa_cli*"])

setup(packages=[*FOUND, EXPERIMENTS], package_dir={EXPERIMENTS: "experiments"})
