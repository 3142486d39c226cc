"""One painting by pystiche in a process of its own, for compare.py; prints JSON like paint.py.

usage: python benchmarks/paint_pystiche.py FOLDER '{"size": …, "steps": …, "pooling": …, …}'. FOLDER
holds content_SIZE.png, style_SIZE.png and the weights, vgg19.pth. With "goals", the painting ends
when its loss has reached each of them. The optimizer is pystiche's own: L-BFGS from the content
picture, one evaluation of the loss per step, on pixels from 0 to 255 (from 0 to 1 it explodes with
these weights). The network is frozen; pystiche leaves that to its user, and a step gets faster.
"""

import json
import sys
import time
from importlib import import_module

began = time.perf_counter()

import torch  # noqa: E402  (its import belongs to the seconds to start)

# pystiche 1.0.1 imports two tables of addresses that torchvision no longer has.
for module, network in {"alexnet": "alexnet", "vgg": "vgg19"}.items():
    import_module(f"torchvision.models.{module}").model_urls = {network: ""}
pystiche = import_module("pystiche")  # not a dependency of this project

STYLE_LAYERS = {"relu1_1": 64, "relu2_1": 128, "relu3_1": 256, "relu4_1": 512, "relu5_1": 512}


def gram_loss(encoder, weight: float):
    return pystiche.loss.GramLoss(encoder, score_weight=weight)


def perceptual_loss(weights: dict, pooling: str):
    """Return pystiche's loss with the network, the layers and the factors of pastiche's."""
    options = {"pretrained": False, "internal_preprocessing": False}
    encoder = pystiche.enc.vgg19_multi_layer_encoder(**options)
    encoder.load_state_dict({f"features.{name}": x for name, x in weights.items()})
    encoder.requires_grad_(False)
    if pooling == "avg":
        for block in range(1, 6):
            setattr(encoder, f"pool{block}", torch.nn.AvgPool2d(kernel_size=2, stride=2))
    relu4_2 = encoder.extract_encoder("relu4_2")
    content_loss = pystiche.loss.FeatureReconstructionLoss(relu4_2, score_weight=0.01)
    factors = [10 / channels**2 for channels in STYLE_LAYERS.values()]
    style_loss = pystiche.loss.MultiLayerEncodingLoss(
        encoder, list(STYLE_LAYERS), gram_loss, layer_weights=factors
    )
    return pystiche.loss.PerceptualLoss(content_loss, style_loss)


def main() -> None:
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    size, goals = options["size"], options.get("goals", [])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    content, style = (
        pystiche.image.read_image(f"{folder}/{kind}_{size}.png", device=device)
        for kind in ("content", "style")
    )
    criterion = perceptual_loss(torch.load(f"{folder}/vgg19.pth"), options["pooling"]).to(device)
    preprocess = pystiche.enc.preprocessing("caffe")
    criterion.set_content_image(preprocess(content))
    criterion.set_style_image(preprocess(style))
    seconds, losses, reached = [], [], []

    def recorded(image):
        loss = criterion(image)
        losses.append(float(loss))
        return loss

    def steps():
        for step in range(options["steps"]):
            yield step
            seconds.append(time.perf_counter() - start)
            reached.extend(seconds[-1] for x in goals[len(reached) :] if losses[-1] <= x)
            if goals and len(reached) == len(goals):
                return

    start = time.perf_counter()
    picture = pystiche.optim.image_optimization(
        content,
        recorded,
        num_steps=steps(),
        preprocessor=preprocess,
        postprocessor=pystiche.enc.postprocessing("caffe"),
        quiet=True,
    )
    pystiche.image.write_image(picture, f"{folder}/painted.png")
    found = {"start": start - began, "seconds": seconds, "sizes": [size] * len(seconds)}
    gpu = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    print(json.dumps({**found, "losses": losses, "reached": reached, "gpu_memory": gpu}))


if __name__ == "__main__":
    main()
