"""Draw docs/images/views.png: views of two photographs that come with scikit-learn (CC BY 2.0).

python benchmarks/readme_picture.py
"""

import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

from ssl_views.cli import main

OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "views.png"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
            Image.fromarray(pixels).save(Path(folder) / f"{name}.png")
        words = ["--image_size", "128", "--recipe", "imagenet", "--num_views", "6", "--seed", "4"]
        main(["preview", "--dataset", folder, *words, "--output", str(OUTPUT)])
