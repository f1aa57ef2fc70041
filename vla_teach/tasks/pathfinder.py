"""Pathfinder: do two markers sit on the same dashed curve? Places in the picture are complex, column + 1j row."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vla_teach.checks import check_count
from vla_teach.tasks.base import SHADES, Task, balanced, check_positive, check_range, classified, example

FAR = -1e6  # the place of a dash that is not there
TURNS, SEEDS = 8, 32  # candidates for the next dash of a curve, and for the first one of a distractor
BACK, PATIENCE = 6, 40  # a curve without room goes back fewer than BACK dashes; the drawing starts anew after so often
TRIES, ROUNDS = 5, 20_000  # for a distractor, then it is left out; of growing, then there is an error


class Scenes(NamedTuple):
    """B drawings as geometry, in pixels; pixel (r, c) covers columns c to c + 1, rows r to r + 1."""

    dashes: np.ndarray  # [B, P, 2], tail and head, complex; the long curves take turns, then come the distractors
    markers: np.ndarray  # [B, 2], complex
    labels: np.ndarray  # [B], 1 where both markers sit on the same curve


@dataclass(frozen=True)
class Pathfinder(Task):
    """Pictures of dashed curves with two markers: 1 if both sit on ends of the same curve, else 0.

    After Linsley et al. (2018) and their generator (snakes2.py), at the settings of the Long Range Arena's hard
    Pathfinder-32 (Tay et al., 2020). Two curves of `dashes` dashes each, whose first ends lie seed_distance apart, near
    the middle; up to `distractors` curves of distractor_dashes, fewer where there is no room. A dash is `dash` long;
    the next follows after a gap of margin on either side of a turning point, turns d having density
    cos(continuity d)^2 among those with room. One marker, a disc, covers the first end of one curve, the other the last
    end of the same curve or, as often, of the other.
    x [B, size^2]: grey levels 0 to 255, row by row; the class is asked at the last.

    What differs from the generator: ends lie anywhere, not on whole pixels; a dash keeps `separation` from all but its
    neighbours, measured exactly, where the generator compares blurred masks; a curve without room goes back a few
    dashes, where the generator draws both anew; lines are shaded by distance, not by shrinking a larger picture; all
    dashes are equally bright, a little less so than the markers; markers never touch; classes are balanced.
    As separation exceeds 2 margin, joining dashes nearer than that gives the curves, in a fine enough picture.

    Raises ValueError or TypeError naming the setting that does not fit, RuntimeError where there is no room.
    """

    size: int = 32
    dashes: int = 14
    distractors: int = 5
    distractor_dashes: int = 4
    dash: float = 2.0
    margin: float = 1.0
    separation: float = 2.25
    thickness: float = 0.5
    seed_distance: float = 7.0
    continuity: float = 1.0
    marker_radius: float = 1.5
    padding: float = 1.0
    contrast: float = 0.75

    kind = "classify"
    vocab = 256
    classes = 2

    def __post_init__(self):
        check_count("size", self.size, 8)
        check_count("dashes", self.dashes, 2)
        check_count("distractors", self.distractors, 0)
        check_count("distractor_dashes", self.distractor_dashes)
        for name in ("dash", "margin", "thickness", "seed_distance", "marker_radius"):
            check_positive(name, getattr(self, name))
        check_positive("contrast", self.contrast, 1)
        check_range("separation", self.separation, max(2 * self.margin, self.dash / 2), np.inf)
        check_range("seed_distance", self.seed_distance, 0, self.size / 4)
        check_range("continuity", self.continuity, 1, np.inf)
        check_range("padding", self.padding, 0, self.size / 4)

    length = property(lambda self: self.size**2)

    def draw(self, B, rng):
        """A Batch with x, y [B, size^2]."""
        scenes = self.scenes(B, rng)
        pictures = np.round(255 * self.picture(scenes)).astype(int)
        return classified(pictures.reshape(B, -1), scenes.labels)

    def show(self, batch, i=0):
        """Example i of a batch as text, a character a pixel, and whether the markers are connected."""
        row = example(batch, i)
        levels = row.x.reshape(self.size, self.size) * len(SHADES) // 256
        lines = ["".join(SHADES[level] for level in line) for line in levels]
        return "\n".join([*lines, f"connected: {('no', 'yes')[row.y[-1]]}"])

    # ---- geometry ----

    def scenes(self, B, rng):
        """B drawings, as Scenes."""
        dashes = self.two_curves(B, rng)
        for _ in range(self.distractors):
            dashes = np.concatenate([dashes, self.distractor(dashes, rng)], axis=1)
        labels, origin, rows = balanced(rng, B), rng.integers(0, 2, B), np.arange(B)
        last = 2 * self.dashes - 2 + np.where(labels == 1, origin, 1 - origin)
        return Scenes(dashes, np.stack([dashes[rows, origin, 0], dashes[rows, last, 1]], axis=1), labels)

    def two_curves(self, B, rng):
        """Two long curves for each of B drawings, grown by turns: [B, 2 dashes, 2]."""
        P = 2 * self.dashes
        slots, placed = np.arange(P), np.full((B, P, 2), FAR + 0j)
        grown, failed, todo = np.zeros(B, int), np.zeros(B, int), np.arange(B)
        for _ in range(ROUNDS):
            new = todo[grown[todo] < 2]
            placed[new, :2] = self.two_seeds(len(new), rng)
            room = self.free(placed[new, 1:2], placed[new, :1])[:, 0]
            grown[new], failed[new] = 2 * room, 0
            rows = todo[grown[todo] >= 2]
            n = grown[rows]
            # The curves take turns, so the dash before is two back; it alone may be near.
            in_the_way = (slots < n[:, None]) & (slots != n[:, None] - 2)
            others = np.where(in_the_way[:, :, None], placed[rows], FAR)
            room, placed[rows, n] = self.choose(self.after(placed[rows, n - 2], rng), others, rng)
            room[n == P - 1] &= self.ends_apart(placed[rows[n == P - 1]])
            back = np.where(failed[rows] < PATIENCE, n - rng.integers(0, BACK, len(n)), 0)
            grown[rows] = np.where(room, n + 1, back)
            failed[rows] += ~room
            todo = np.flatnonzero(grown < P)
            if not len(todo):
                return placed
        raise RuntimeError(f"{len(todo)} of {B} drawings have no room for both curves; expected looser settings")

    def two_seeds(self, B, rng):
        """The first dashes of the two curves, without a look at whether they cross: [B, 2, 2]."""
        corner, side = 2 * self.seed_distance, self.size - 4 * self.seed_distance  # the box in the middle
        first = (1 + 1j) * corner + side * (rng.random(B) + 1j * rng.random(B))
        tails = np.stack([first, first + self.seed_distance * random_direction(rng, B)], axis=1)
        return self.from_tails(tails, rng)

    def distractor(self, placed, rng):
        """One short curve for each drawing, or FAR where TRIES did not do: [B, distractor_dashes, 2]."""
        found = np.full((len(placed), self.distractor_dashes, 2), FAR + 0j)
        lacking = np.arange(len(placed))
        for _ in range(TRIES):
            rows, curve = lacking, np.empty((len(lacking), 0, 2))
            for n in range(self.distractor_dashes):
                places = rng.random((2, len(rows), SEEDS))
                seeds = self.from_tails(self.size * (places[0] + 1j * places[1]), rng)
                others = np.concatenate([placed[rows], curve[:, :-1]], axis=1)
                room, chosen = self.choose(self.after(curve[:, -1], rng) if n else seeds, others, rng)
                curve, rows = np.concatenate([curve, chosen[:, None]], axis=1)[room], rows[room]
            found[rows] = curve
            lacking = np.setdiff1d(lacking, rows)
        return found

    def from_tails(self, tails, rng):
        """Dashes [B, n, 2] in random directions from tails [B, n]."""
        return np.stack([tails, tails + self.dash * random_direction(rng, tails.shape)], axis=-1)

    def after(self, dash, rng):
        """Candidates [B, TURNS, 2] for the dash that follows dash [B, 2]; turns evenly spread over their density."""
        ahead = (dash[:, 1] - dash[:, 0]) / self.dash
        share = (np.arange(TURNS) + rng.random((len(dash), TURNS))) / TURNS
        turned = ahead[:, None] * np.exp(1j * cosine_square(share) / self.continuity)
        pivot = dash[:, 1] + self.margin * ahead
        return pivot[:, None, None] + turned[:, :, None] * (self.margin + np.array([0, self.dash]))

    def free(self, candidates, placed):
        """Which of the candidates [B, n, 2] have room among placed [B, P, 2] -> [B, n]."""
        edge = self.padding + self.margin
        parts = np.stack([candidates.real, candidates.imag])
        inside = ((parts >= edge) & (parts <= self.size - edge)).all(axis=(0, 3))
        return inside & (clearance(candidates, placed) >= self.separation)

    def choose(self, candidates, placed, rng):
        """One of the candidates [B, n, 2] with room: whether there is one [B], and which [B, 2]."""
        free = self.free(candidates, placed)
        return free.any(axis=1), candidates[np.arange(len(free)), (free * rng.random(free.shape)).argmax(axis=1)]

    def ends_apart(self, placed):
        """Whether no first end of a long curve is so near to a last end that their markers might touch: [B]."""
        return np.abs(placed[:, :2, None, 0] - placed[:, None, -2:, 1]).min(axis=(1, 2)) > 2 * self.marker_radius + 1

    def picture(self, scenes, scale=1):
        """Brightness [B, size scale, size scale] from 0 to 1; scale cuts every pixel into scale x scale finer ones."""
        centres = (np.arange(self.size * scale) + 0.5) / scale
        points = (centres + 1j * centres[:, None]).ravel()
        half, blur = self.thickness / 2, 0.5 / scale
        nearest = np.full((len(scenes.labels), len(points)), np.inf)
        for n in range(scenes.dashes.shape[1]):
            nearest = np.minimum(nearest, distance(points, scenes.dashes[:, n, None]))
        lines = self.contrast * np.clip((blur + half - nearest) / min(2 * blur, blur + half), 0, 1)
        centre = np.abs(points - scenes.markers[:, :, None]).min(axis=1)
        discs = np.clip((blur + self.marker_radius - centre) / (2 * blur), 0, 1)
        return np.maximum(lines, discs).reshape(-1, self.size * scale, self.size * scale)


def random_direction(rng, shape):
    """Numbers of size 1 in all directions."""
    return np.exp(2j * np.pi * rng.random(shape))


def cosine_square(share):
    """Angles between -pi/2 and pi/2 with density proportional to cos^2, from numbers in [0, 1] of any shape."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 1001)
    return np.interp(share, 0.5 + angle / np.pi + np.sin(2 * angle) / (2 * np.pi), angle)


def distance(points, dashes):
    """From points [...] to dashes [..., 2], any shapes that broadcast."""
    tail, along = dashes[..., 0], dashes[..., 1] - dashes[..., 0]
    off = points - tail
    share = np.clip((off * along.conj()).real / np.maximum(np.abs(along) ** 2, 1e-12), 0, 1)  # FAR: a point
    off = off - share * along
    return np.sqrt(off.real**2 + off.imag**2)


def clearance(candidates, placed):
    """The least distance of each of candidates [B, n, 2] from placed [B, P, 2] -> [B, n].

    Between two dashes that do not cross, it is that of an end from the other dash; if they cross, an end lies within
    half a dash of the other, and no separation is smaller than that.
    """
    one = distance(candidates[:, :, None, :], placed[:, None, :, None, :])
    other = distance(placed[:, None, :, :], candidates[:, :, None, None, :])
    return np.minimum(one, other).min(axis=(2, 3))
