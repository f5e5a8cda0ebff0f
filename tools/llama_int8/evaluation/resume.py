"""Long work in batches: with progress, resumed after an interruption, split over processes.

Batches are formed before they are dealt out and each is computed by itself, so neither an
interruption nor the number of processes changes a result.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


class Processes:
    """The processes of one evaluation: this one's number, and how many there are.

    Under `accelerate launch --num_processes N` there are N; else one.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.number, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=device == "cpu")
            self.number, self.count = self._state.process_index, self._state.num_processes

    def own_device(self, device: str) -> str:
        """`device`, or this process's own GPU where there are several processes."""
        if self.count == 1 or device == "cpu":
            return device
        return f"cuda:{self._state.local_process_index}"

    @property
    def first(self) -> bool:
        """True in the process that writes the results."""
        return self.number == 0

    def gather(self, entries: list[Any]) -> list[Any]:
        """The entries of all processes, in every process."""
        if self.count == 1:
            return entries
        from accelerate.utils import gather_object

        return gather_object(entries)


class Journal:
    """Finished batches on disk, one JSON line each; a line that was cut off does not count.

    `about`: what the results follow from; another value is another journal.
    """

    def __init__(self, folder: Path, name: str, about: Any) -> None:
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        self.stem, self.folder = f"{name}-{key}", folder

    def read(self) -> dict[int, Any]:
        """Results by number of batch, of all processes that have written."""
        found = {}
        for path in sorted(self.folder.glob(f"{self.stem}.*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    number, result = json.loads(line)
                except ValueError:  # the process was killed while it wrote
                    continue
                found[number] = result
        return found

    def add(self, process: int, number: int, result: Any) -> None:
        """Append one batch's result to this process's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.stem}.{process}.jsonl").open("a", encoding="utf-8") as file:
            # Each on a line of its own, also after one that was cut off.
            file.write("\n" + json.dumps([number, result], allow_nan=False) + "\n")

    def forget(self) -> None:
        """Delete what all processes have written: it has turned out to be worthless."""
        for path in self.folder.glob(f"{self.stem}.*.jsonl"):
            path.unlink(missing_ok=True)


def run_batches(
    batches: Sequence[Any],
    work: Callable[[Any], Any],
    label: str,
    journal: Journal | None = None,
    processes: Processes | None = None,
) -> list[Any]:
    """`work(batch)` of every batch, in their order, in every process.

    `work` returns plain JSON data. What a journal holds is not computed again, and a line says so.
    """
    processes = processes or Processes()
    done = journal.read() if journal else {}
    if done and processes.first:
        print(f"{label}: {len(done)} of {len(batches)} batches were kept from an earlier run")
    mine = [n for n in range(len(batches)) if n % processes.count == processes.number]
    new = {}
    progress = tqdm(mine, desc=label, leave=False, disable=not processes.first)
    for number in progress:
        if number in done:
            continue
        new[number] = work(batches[number])
        if journal:
            journal.add(processes.number, number, new[number])
    done |= dict(processes.gather(list(new.items())))
    return [done[number] for number in range(len(batches))]
