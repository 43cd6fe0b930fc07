"""What `scfm convert` says."""

from __future__ import annotations

from pathlib import Path

from scfm.cli._shell import columns


def convert(source: str, out: Path, family: str | None, revision: str | None, checkpoint: str | None) -> str:
    """Convert, and tell what was written, and which tensors of the source were left out and why."""
    from scfm.models._convert import convert as run

    model = run(source, out, family, revision, checkpoint)
    files = [(path.name, f"{path.stat().st_size:,} bytes") for path in sorted(out.expanduser().iterdir())]
    lines = [f"{model.card.name} ({model.card.family}) is in {out}:", columns(files)]
    if model.notes:
        lines += ["left out:", columns([*model.notes.items()])]
    return "\n".join(lines)
