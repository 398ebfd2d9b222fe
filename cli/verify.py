"""`ntk verify`: run the theorem experiments, print the claims, and let the exit status say whether all held."""

import logging
from pathlib import Path

from exact_ntk.device import keep_to_cores, resolve_device
from exact_ntk.errors import ConfigError, NtkError
from exact_ntk.files import require_writable
from exact_ntk.theory import verify as experiments
from exact_ntk.theory.summary import verdict

log = logging.getLogger("ntk")


def verify_claims(quick: bool, results: Path, device: str) -> None:
    """Write results/theory, or results/theory-quick. Raises NtkError unless every claim holds."""
    if results.exists() and not results.is_dir():
        raise ConfigError(f"--results {results}: is a file, not a folder")
    folder = results / ("theory-quick" if quick else "theory")
    chosen = resolve_device(device)
    keep_to_cores()
    require_writable(folder)
    claims = experiments.verify_theorems(experiments.QUICK if quick else experiments.FULL, folder, chosen)
    for claim in claims:
        print(f"{'holds' if claim.holds else 'FAILS'}  {claim.claim}: {claim.measured} ({claim.criterion})")
    log.info(f"wrote {folder}/: summary.md, summary.json, provenance.json and figures")
    if not all(claim.holds for claim in claims):
        raise NtkError(f"{verdict(claims)}: see {folder}/summary.md")
    print(verdict(claims))
