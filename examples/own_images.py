"""Labels for images in one folder from labelled images in another.

    python examples/own_images.py LABELLED NEW [--size 32]

LABELLED holds a folder a class (LABELLED/cat/1.jpg), NEW images alone. Prints CSV, a line an image: file, label and its
probability, by the spread of trained nets (docs/your-images.md).
"""

import argparse

from exact_ntk import CNTKClassifier, load_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled")
    parser.add_argument("new")
    parser.add_argument("--size", type=int, help="a side in pixels that all images are brought to")
    given = parser.parse_args()

    mine = load_folder(given.labelled, given.size)
    new = load_folder(given.new, given.size, channels=mine.images.shape[-1])
    model = CNTKClassifier(depth=4, verbose=True).fit(mine.images, mine.labels)
    for file, chances in zip(new.files, model.predict_proba(new.images), strict=True):
        print(f"{file.name},{mine.classes[model.classes_[chances.argmax()]]},{chances.max():.3f}")


if __name__ == "__main__":
    main()
