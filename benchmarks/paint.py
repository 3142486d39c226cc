"""One painting in a process of its own, for compare.py; prints when it was where, as JSON.

usage: python benchmarks/paint.py FOLDER '[sizes, steps, pooling, {options}]'. FOLDER holds
content_SIZE.png and style_SIZE.png. Options: the weights `content` and `style`, `coarse_content`,
and `goals`, losses at the last size to be timed: the painting ends when all are reached and
`at_least` so many seconds are over; the picture of that second is saved as equal_seconds.png.
"""

import json
import sys
import time

began = time.perf_counter()

import nst_helpers as nst  # noqa: E402  (its import belongs to the seconds to start)


def main() -> None:
    folder, (sizes, steps, pooling, options) = sys.argv[1], json.loads(sys.argv[2])
    content, style = (
        nst.load_image(f"{folder}/{kind}_{sizes[-1]}.png") for kind in ("content", "style")
    )
    weights = nst.Weights(options.get("content", 1.0), options.get("style", 500.0))
    vgg = nst.load_vgg19(pooling=pooling)
    goals, at_least = options.get("goals", []), options.get("at_least", 0.0)
    reached, seconds, long_sides, last = [None] * len(goals), [], [], None
    start = time.perf_counter()
    for step in nst.stylize(
        content,
        style,
        vgg=vgg,
        weights=weights,
        sizes=sizes,
        steps=steps,
        coarse_content=options.get("coarse_content", 1.0),
        tolerance=0,
    ):
        now = time.perf_counter() - start
        if goals and now > at_least and (last is None or last <= at_least):
            nst.to_pil(step.image).save(f"{folder}/equal_seconds.png")
        last = now
        seconds.append(now)
        long_sides.append(step.size)
        for index, goal in enumerate(goals):
            if reached[index] is None and step.size == sizes[-1]:
                reached[index] = now if step.losses["total"] <= goal else None
        if goals and None not in reached and now > at_least:
            break
    nst.to_pil(step.image).save(f"{folder}/ours_{sizes[-1]}.png")
    found = {"start": start - began, "seconds": seconds, "sizes": long_sides, "reached": reached}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
