"""What comes of training: a version with its measurements, and whether the name moves to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hyprstream import __version__
from hyprstream.errors import InvalidRequestError
from hyprstream.lora.weights import pack
from hyprstream.refs import VersionId
from hyprstream.runtime.adapted import load_adapter
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.training import TrainingRun
from hyprstream.runtime.training_data import maker_of
from hyprstream.runtime.training_records import Evaluated, Trained, TrainingPlan
from hyprstream.store.manifest import Draft
from hyprstream.store.records import Note
from hyprstream.train.dataset import DataConfig, read_dataset
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.gate import GateConfig
from hyprstream.train.paired import bound_mean
from hyprstream.train.trainer import Trainer
from hyprstream.vdb import codecs

Promotion = Literal["better", "always", "never"]
"""When the name moves: if it is better on held-out samples beyond chance, always, or never."""

CANDIDATE = "candidate"
"""The tag of the last version that training made."""

_MAX_PLAN_CHARS = 4000  # of a text in a manifest
_NO_NOTE = Note()


def finish_training(
    run: TrainingRun, promotion: Promotion = "better", note: Note = _NO_NOTE
) -> Trained:
    """Store the best version of a run, tag it as the candidate, and let the name move if it may.

    What was saved of the run is removed.

    Raises:
        StaleParentError: Somebody moved the name meanwhile; the candidate is stored all the
            same, and the name stays.
        StorageFullError: The disk is full; the run can still be resumed.
    """
    best = run.run.best
    if best.step == 0:
        run.discard()
        return Trained(
            version=None,
            parent=run.parent,
            step=0,
            is_promoted=False,
            why="no look at the held-out samples found it better than the version before",
            metrics={},
        )
    manifest = run.adapters.manifest(run.parent)
    codec = str(manifest.spec.get("codec", manifest.codec))
    drift = run.drift(best.weights)
    metrics = _metrics(run)
    if drift is not None:
        metrics |= {"anchor_loss": drift.loss, "base_anchor_loss": drift.base_loss}
    draft = Draft(
        base=manifest.base.fingerprint,
        kinds=manifest.kinds,
        spec=manifest.spec,
        codec=codec,
        parent=run.parent,
        metrics=metrics,
        provenance=_provenance(run.plan, run.material.fingerprint, run.material.method),
    )
    seed = manifest.spec.get("seed")
    done = run.adapters.commit(pack(best.weights), draft, seed=seed if type(seed) is int else None)
    run.adapters.tag(f"{run.name}:{CANDIDATE}", done.version)
    is_better, why = _verdict(run, done.version, promotion)
    run.discard()
    if is_better:
        run.adapters.move(run.name, done.version, expected=run.parent, note=note)
    return Trained(
        version=done.version,
        parent=run.parent,
        step=best.step,
        is_promoted=is_better,
        why=why,
        metrics=run.adapters.manifest(done.version).metrics,
        drift=drift,
    )


def evaluate_adapter(
    adapters: Adapters, ref: str, model: Model, data: Sequence[Path], config: DataConfig
) -> Evaluated:
    """Measure a version and its base model on all answers of files.

    Raises:
        InvalidRequestError: The files hold no answers.
        HyprstreamError: The files, or the adapter, cannot be used.
    """
    loaded = load_adapter(adapters, ref, model)
    trainer = Trainer(model.decoder)
    samples = read_dataset(data, maker_of(model, model.context_length), config).trained.samples
    if not samples:
        raise InvalidRequestError(
            "the data holds choices between answers only", hint="Give answers to be measured by."
        )
    longest = max(2048, *(sample.num_computed for sample in samples))
    ours, base = (
        trainer.score(weights, samples, batch_tokens=longest) for weights in (loaded.weights, None)
    )
    return Evaluated(
        version=loaded.version,
        adapter=Evaluation.of(ours),
        base=Evaluation.of(base),
        num_better=sum(a.loss < b.loss for a, b in zip(ours, base, strict=True)),
    )


def _verdict(run: TrainingRun, version: VersionId, promotion: Promotion) -> tuple[bool, str]:
    """Decide whether the name moves, and say why."""
    if promotion != "better":
        moves = promotion == "always"
        return moves, f"the name {'moves' if moves else 'stays'} because that was asked for"
    start, best = run.run.start, run.run.best.held_out
    if start is None or best is None:
        return False, "nothing was held out, so nothing says that it is better"
    if not codecs.load(run.adapters.manifest(version).codec).LOSSLESS:
        # What counts is what was stored, not what was trained.
        stored = load_adapter(run.adapters, f"{run.name}@{version}", run.model, force=True)
        best = run.run.measured(stored.weights)
        assert best is not None
    return _is_better(start.losses, best.losses)


def _is_better(before: Sequence[float], after: Sequence[float]) -> tuple[bool, str]:
    """Compare losses of the same samples, as the gate does with those of the serving loop.

    Its other checks are about samples of strangers; these were chosen by a person.
    """
    gate = GateConfig()
    if len(before) < gate.min_held_out:
        few = f"{len(before)} held-out samples are too few to tell, {gate.min_held_out} are needed"
        return False, few
    changes = [b - a for a, b in zip(before, after, strict=True)]
    bounds = bound_mean(changes, gate.alpha)
    told = (
        f"held-out loss changed by {bounds.mean:+.4f} a sample, at most {bounds.high:+.4f} "
        f"({1 - gate.alpha:.0%} sure)"
    )
    return bounds.high < -gate.min_gain, told


def _metrics(run: TrainingRun) -> dict[str, float]:
    """Measure the best version before it is coded: of a code that keeps every bit, as stored."""
    best = run.run.best
    losses = [point.loss for point in run.run.curve[1 : best.step + 1] if point.loss is not None]
    metrics = {"num_steps": float(best.step), "train_loss": losses[-1]}
    if best.held_out is not None:
        assert run.run.start is not None
        metrics |= {
            "held_out_loss": best.held_out.loss,
            "parent_held_out_loss": run.run.start.loss,
            "num_held_out": float(len(best.held_out.losses)),
        }
    if run.material.method == "answers" and run.material.dataset.held_out.samples:
        found = Evaluation.of(run.scores(best.weights))
        metrics |= {
            "perplexity": found.perplexity,
            "token_accuracy": found.token_accuracy,
            "exact_match": found.exact_match,
        }
    return metrics


def _provenance(plan: TrainingPlan, fingerprint: str, method: str) -> dict[str, str]:
    plain = {**plan.plain(), "data": [file.name for file in plan.data],
             "replay": [file.name for file in plan.replay]}  # fmt: skip
    return {
        "made_by": f"hyprstream {__version__}, training",
        "method": method,
        "data_sha256": fingerprint,
        "plan": json.dumps(plain)[:_MAX_PLAN_CHARS],
    }
