"""How many samples tell a loss from noise."""

from __future__ import annotations

from labkit import figures
from labkit.compare import detection_power, samples_to_detect
from labkit.explorers.explorer import Explorer, Slider

LOSS = 1.0  # points, at first
COUNTS = (20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


def sample_size(accuracy: float = 0.75, differing: float = 0.06) -> Explorer:
    """The chance to see a loss over the number of samples, with paired rows and without.

    accuracy: the baseline's, 0 to 1. differing: share of the rows on which the two models differ, which is never less
    than the loss. Both are where their sliders stand at first, so a lab gives what it measured.
    """

    def draw(accuracy: float, differing: float, loss: float, samples: float) -> figures.Figure:
        lost, n = loss / 100, round(samples)
        points = "1 point" if loss == 1 else f"{loss:g} points"
        apart = max(differing / 100, lost)  # rows that were lost differ
        ways = {"the same rows for both": apart, "other rows for each": None}
        power = {
            name: [detection_power(count, accuracy, lost, share) for count in COUNTS] for name, share in ways.items()
        }
        needed = {name: samples_to_detect(accuracy, lost, share) for name, share in ways.items()}
        paired, unpaired = needed.values()
        return figures.power_curves(
            COUNTS,
            power,
            n,
            f"A loss of {points} from {accuracy:.1%}, the models differing on {apart:.1%} of the rows: with "
            f"{n:,} samples it shows in {detection_power(n, accuracy, lost, apart):.0%} of all evaluations if both "
            f"models answer the same rows, in {detection_power(n, accuracy, lost, None):.0%} if not. For 80% it takes "
            f"{paired:,} paired samples, or {unpaired:,} of each.",
        )

    controls = {
        "accuracy": Slider("baseline's accuracy", 0.3, 0.999, 0.001, min(max(round(accuracy, 3), 0.3), 0.999)),
        "differing": Slider("rows that differ, %", 0.5, 30, 0.5, min(max(round(200 * differing) / 2, LOSS), 30)),
        "loss": Slider("loss, points", 0.25, 5, 0.25, LOSS),
        "samples": Slider("samples", 4, 16, 0.5, 8, power=True),
    }
    return Explorer(controls, draw)
