"""LoRA: fine-tune a pretrained vision transformer by low-rank updates of its attention.

`W x` becomes `W x + A B x`, with `A` and `B` of a small rank the only weights of the backbone that
learn; beside it a linear layer on frozen features, and full fine-tuning.
Paper: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022.
Data: --data, a folder or archive with labels; the default is the shipped emoji.
Command: KERAS_BACKEND=tensorflow python examples/lora.py --data cifar10.tar.gz --limit 10000
Result: trainable parameters (19,849 by LoRA of 1,197,449), accuracy and time of each; result.json;
and the preset tuned by LoRA, an ordinary one: saving adds the updates to the weights.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np

import keras_ssl
from keras_ssl import runs


def classifier(args, num_classes, way):
    """The preset's encoder with a new head, and what of it learns."""
    keras.utils.set_random_seed(0)
    model = keras_ssl.models.ImageClassifier.from_preset(
        args.preset, num_classes=num_classes, pooling="mean"
    )
    if way == "linear":
        model.backbone.trainable = False
    elif way == "LoRA":
        model.backbone.enable_lora(args.rank)
    return model


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--preset", default="mae_vit_nano_cifar10", help="of a vision transformer")
    ways = ["linear", "LoRA", "full"]
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--limit", type=int, default=2000, help="most pictures to learn from")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/lora"))
    args = parser.parse_args(argv)
    size = keras_ssl.backbones.ViTBackbone.from_preset(args.preset, load_weights=False).image_shape
    data = runs.load_data(args.data, size[0])
    train, test = data.labelled(args.limit)
    print(data, f"{len(train[0])} to learn from, {len(test[0])} to measure on", sep="; ")
    result = {}
    for way in args.ways:
        rate = 1e-3 if way == "full" else 5e-3
        model = classifier(args, len(data.class_names), way)
        steps = args.epochs * -(-len(train[0]) // args.batch_size)
        model.compile(
            learning_rate=rate, layer_decay=0.75 if way == "full" else 1.0, total_steps=steps
        )
        start = time.time()
        model.fit(*train, batch_size=args.batch_size, epochs=args.epochs, verbose=0)
        seconds = time.time() - start
        answers = model.predict(test[0], batch_size=256, verbose=0).argmax(axis=1)
        result[way] = {
            "trainable parameters": sum(int(np.prod(w.shape)) for w in model.trainable_variables),
            "accuracy": float((answers == test[1]).mean()),
            "seconds": seconds,
        }
        print(f"{way:7}", *(f"{k} {v:,.3f}" for k, v in result[way].items()), sep="  ", flush=True)
        if way == "LoRA":
            folder = args.output / "preset"
            model.save_to_preset(folder)
            again = keras_ssl.models.ImageClassifier.from_preset(folder)
            same = again.predict(test[0], batch_size=256, verbose=0).argmax(axis=1)
            result["agreement after loading"] = float((same == answers).mean())
            print(f"Loaded again, it answers the same on {(same == answers).mean():.1%}")
    (args.output / "result.json").write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
