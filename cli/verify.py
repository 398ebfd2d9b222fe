"""`ntk verify`: run the theorem experiments, print the claims, and let the exit status say whether all held."""

from pathlib import Path

from cli.stages import say
from pipeline.device import resolve_device
from pipeline.errors import ConfigError, NtkError
from pipeline.files import require_writable
from pipeline.theory import verify as experiments
from pipeline.theory.summary import verdict


def verify(quick: bool, results: Path, device: str) -> None:
    """Write results/theory, or results/theory-quick. Raises NtkError unless every claim holds."""
    if results.exists() and not results.is_dir():
        raise ConfigError(f"--results {results}: is a file, not a folder")
    folder = results / ("theory-quick" if quick else "theory")
    chosen = resolve_device(device)
    require_writable(folder)
    claims = experiments.verify(experiments.QUICK if quick else experiments.FULL, folder, chosen)
    for claim in claims:
        print(f"{'holds' if claim.holds else 'FAILS'}  {claim.claim}: {claim.measured} ({claim.criterion})")
    say(f"wrote {folder}/: summary.md, summary.json, provenance.json and figures")
    if not all(claim.holds for claim in claims):
        raise NtkError(f"{verdict(claims)}: see {folder}/summary.md")
    print(verdict(claims))
