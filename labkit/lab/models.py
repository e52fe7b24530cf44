"""The models of a lab: where the base model and its variants are, how they are loaded, what they are calibrated on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from labkit import calibration, checkpoint, hardware, tiny, tokenized
from labkit.errors import DataError, MissingResult
from labkit.lab.notebook import waiting, wrapped
from labkit.lab.telling import Telling
from labkit.localdata import find_data_file, read_rows
from labkit.manifest import read_manifest
from labkit.modelfolder import weight_files
from labkit.profiles import BASELINE, EMBEDDED, TINY, Task
from labkit.workspace import publishing

if TYPE_CHECKING:
    from labkit.calibration import CalibrationSet


class Models(Telling):
    """The part of a `Lab` that finds models and rows."""

    @cached_property
    def base(self) -> Path:
        """The folder of the unquantized model; one of labkit's own is written on first use."""
        if not self.own_model:
            here = Path(self.model_source).expanduser().is_dir()
            with nullcontext() if here else waiting(f"bringing {self.model_source}"):
                return checkpoint.resolve_model(self.model_source, offline=self.offline, cache=self.workspace.models)
        final = self.checkpoint(BASELINE)
        if not final.exists():
            with self.workspace.exclusive(final.name):  # labs that run side by side all want it
                if not final.exists():
                    self._make_base(final)
        return final

    def _make_base(self, final: Path) -> None:
        facts = {"outlier_factor": tiny.OUTLIER_FACTOR} if self.embedded else {"seed": tiny.SPEED_SEED}
        with publishing(final, base=self.model_source, variant=BASELINE, **facts) as stage:
            (tiny.materialize if self.embedded else tiny.materialize_speed_model)(stage)

    def in_shards(self, parts: int) -> Path:
        """The base model in several files: itself if it has more than one, else a scratch copy in about `parts`."""
        files = weight_files(self.base)
        if len(files) > 1:
            return self.base
        folder = self.scratch("shards") / self.model_name
        with publishing(folder, base=self.model_source, variant=BASELINE) as stage:
            model = checkpoint.load(self.base)
            model.save_pretrained(stage, max_shard_size=-(-files[0].stat().st_size // parts))
            self.tokenizer().save_pretrained(stage)
        return folder

    def with_outliers(self, k: float) -> Self:
        """The same lab on the embedded model and its rows, planted outliers k times as large as their channel was."""
        folder = self.workspace.root / "cache" / "planted" / f"{EMBEDDED}-k{k:.0f}"
        if not folder.exists():
            with publishing(folder, base=EMBEDDED, variant=BASELINE, outlier_factor=k) as stage:
                tiny.materialize(stage, k)
        rows = replace(TINY.calibration, rows=min(self.profile.calibration.rows, TINY.calibration.rows))
        return replace(
            self,
            profile=replace(self.profile, calibration=rows),
            parameters=replace(self.parameters, model=str(folder), data=""),
        )

    def on_speed_model(self) -> Self:
        """The same lab on the model that the profile measures speed with; on itself if that is no other one."""
        other = self.profile.serving.model
        if self.parameters.model or not other:
            return self
        return replace(self, parameters=replace(self.parameters, model=other))

    def checkpoint(self, variant: str) -> Path:
        """Where a variant of this lab's model lives, whether or not it is there yet."""
        if variant == BASELINE and not self.own_model:
            return self.base
        own = self.model_source == self.profile.model
        return self.workspace.checkpoint(variant, "" if own else self.model_name)

    def need(self, variant: str, made_by: str) -> Path:
        """The folder of a variant that another lab made; a clear error if it is not there, or is another model's."""
        folder = self.base if variant == BASELINE else self.checkpoint(variant)
        command = f"run it first: labkit run {made_by}"
        if not folder.exists():
            raise MissingResult(f"{folder} is not there", why=f"this lab reads what lab {made_by} makes", fix=command)
        if variant != BASELINE and (base := read_manifest(folder).get("base")) != self.model_name:
            raise MissingResult(
                f"{folder} was made from {base}, not from {self.model_name}",
                why="two models would be compared as if they were one",
                fix=f"give each profile a workspace of its own (LABKIT_WORKSPACE), then {command}",
            )
        return folder

    def has(self, variant: str) -> bool:
        """Whether this workspace has a variant, made from this lab's model."""
        folder = self.checkpoint(variant)
        return folder.exists() and read_manifest(folder).get("base") == self.model_name

    @property
    def device(self) -> str:
        """Where a model of this lab runs inside the notebook: `cuda` if this machine has it, else `cpu`."""
        return "cuda" if hardware.engine_build() == "cuda" and hardware.this_machine().gpus else "cpu"

    def load(self, folder: Path) -> Any:
        """The model of a checkpoint, loaded strictly, on this lab's device, ready to read."""
        return checkpoint.load(folder).to(self.device).eval()

    def tokenizer(self) -> Any:
        return checkpoint.load_tokenizer(self.base)

    def calibration_rows(self, rows: int = 0) -> CalibrationSet:
        """The profile's calibration set, or `rows` rows of it; warns of rows that a task is scored on."""
        chosen = self._rows(rows or self.profile.calibration.rows)
        for task in self.profile.tasks if self.parameters.data else ():
            self._warn_of_repeats(chosen, task)
        return chosen

    def _rows(self, rows: int) -> CalibrationSet:
        """Those of a local file are tokenized once a workspace; the embedded corpus is made as fast as it is read."""
        spec, data, seed = self.profile.calibration, self.parameters.data, self.profile.seed

        def make() -> CalibrationSet:
            return calibration.calibration_set(spec, self.tokenizer(), data=data, rows=rows, seed=seed)

        if not data:
            return make()
        settings = {"rows": rows, "max_length": spec.max_length, "seed": seed}
        key = tokenized.key(calibration.local_file(spec, data), self.base, **settings)
        return tokenized.once(self.workspace.tokens, key, make)

    def _warn_of_repeats(self, chosen: CalibrationSet, task: Task) -> None:
        """Of local files only: what a hub data set holds would have to be fetched for it."""
        scored = task.data_files.get("test") or next(iter(task.data_files.values()), ())  # IFEval has a `train` only
        try:
            path = find_data_file(self.parameters.data, scored, f"test rows of {task.name}")
            found = calibration.repeated(chosen, read_rows(path))
        except DataError:  # an evaluation will say so, if there is one
            return
        if found:
            print(
                wrapped(
                    f"Warning: of {path.name}, {len(found)} of the questions stand in the {chosen.requested} "
                    f"calibration rows of {chosen.source}, such as {found[0][:60]!r}. "
                    f"A score of {task.name} on them says too much: calibrate on other rows."
                )
            )
