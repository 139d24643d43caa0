"""The zoo: classifiers for small images, their weights, and their files.

A model of the zoo takes raw pixels, float32 in [0, 255], normalizes them in its first layer, and
returns logits. It contains only Keras's own layers, so its file loads in plain Keras.

```python
student = models.build("resnet20", input_shape=(32, 32, 3), num_classes=10)
teacher = models.load(
    "resnet56", input_shape=(32, 32, 3), num_classes=10, weights="resnet56.safetensors",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)
```
"""

from models.loading import check_source, load, load_for
from models.weights.pytorch import load_pytorch, save_pytorch
from models.zoo import available, build, features

__all__ = [
    "available", "build", "check_source", "features", "load", "load_for", "load_pytorch",
    "save_pytorch",
]  # fmt: skip
