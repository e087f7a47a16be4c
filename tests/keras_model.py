"""The published network built in Keras from its description, layer by layer, for comparison. Keras runs on torch here."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

os.environ["KERAS_BACKEND"] = "torch"
STAGES = ((3, 128, 256), (4, 256, 512), (6, 512, 1024), (3, 1024, 2048))


class KerasNetwork:
    """`model` gives the 16 probabilities, `trace` every layer's output under the names that slidescreen's own layers have."""

    def __init__(self, home: Path) -> None:
        os.environ["KERAS_HOME"] = str(home)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import keras

        self.keras = keras
        keras.utils.clear_session()
        keras.utils.set_random_seed(5)  # of the kernels, which Keras draws
        self.outputs: dict[str, Any] = {}
        image = keras.Input((400, 400, 3))
        x = self._activate(self._norm(self._convolve(image, "conv", 64, 7, 2), "bn"))
        x = keras.layers.MaxPooling2D(3, strides=2, padding="same")(x)
        number = 0
        for stage, (blocks, inner, outer) in enumerate(STAGES):
            for block in range(blocks):
                x = self._block(x, f"blocks.{number}", inner, outer, 2 if stage and not block else 1, not block)
                number += 1
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(16, activation="softmax")(x)
        self.model = keras.Model(image, x)
        self.trace = keras.Model(image, {**self.outputs, "probabilities": x})

    def _convolve(self, x: Any, name: str, channels: int, kernel: int, stride: int = 1) -> Any:
        y = self.keras.layers.Conv2D(channels, kernel, strides=stride, padding="same")(x)
        self.outputs[name] = y
        return y

    def _norm(self, x: Any, name: str) -> Any:
        self.outputs[name] = self.keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(x)
        return self.outputs[name]

    def _activate(self, x: Any) -> Any:
        return self.keras.layers.LeakyReLU(negative_slope=0.3)(x)

    def _grouped(self, x: Any, name: str, channels: int, stride: int) -> Any:
        """32 separate convolutions, each of its slice of the channels."""
        width = channels // 32
        parts = [
            self.keras.layers.Conv2D(width, 3, strides=stride, padding="same")(x[..., i * width : (i + 1) * width])
            for i in range(32)
        ]
        self.outputs[name] = self.keras.layers.concatenate(parts)
        return self.outputs[name]

    def _block(self, x: Any, name: str, inner: int, outer: int, stride: int, project: bool) -> Any:
        y = self._activate(self._norm(self._convolve(x, f"{name}.conv1", inner, 1), f"{name}.bn1"))
        self.outputs[f"{name}.conv2 in"] = y
        y = self._activate(self._norm(self._grouped(y, f"{name}.conv2", inner, stride), f"{name}.bn2"))
        self.outputs[f"{name}.conv3 in"] = y
        y = self._norm(self._convolve(y, f"{name}.conv3", outer, 1), f"{name}.bn3")
        if project:
            x = self._norm(self._convolve(x, f"{name}.shortcut.0", outer, 1, stride), f"{name}.shortcut.1")
        self.outputs[name] = self._activate(self.keras.layers.add([y, x]))
        return self.outputs[name]

    def randomise(self, seed: int, x: NDArray[np.float32]) -> None:
        """Weights that no new network has: random scales, shifts and biases, and statistics about those of the images `x`, as a
        trained network's are, without which all images would look alike to it. Kernels stay as they were drawn, but for the last,
        which is made smaller, so that no probability is next to 1."""
        rng = np.random.default_rng(seed)
        spread = {"bias": (-0.2, 0.2), "beta": (-0.2, 0.2), "gamma": (0.7, 1.3)}
        norms = [layer for layer in self.model.layers if isinstance(layer, self.keras.layers.BatchNormalization)]
        for weight in self.model.weights:
            if weight.name in spread:
                weight.assign(rng.uniform(*spread[weight.name], weight.shape).astype(np.float32))
        dense = self.model.layers[-1].kernel
        dense.assign(dense * 0.2)
        for layer in norms:
            layer.momentum = 0.0  # the next batch's statistics are taken over
        with torch.inference_mode():
            self.model(x, training=True)
            for layer in norms:
                layer.momentum = 0.99
                layer.moving_mean.assign(layer.moving_mean + rng.uniform(-0.1, 0.1, layer.moving_mean.shape).astype(np.float32))
                layer.moving_variance.assign(
                    layer.moving_variance * rng.uniform(0.7, 1.3, layer.moving_mean.shape).astype(np.float32)
                )

    def save(self, path: Path) -> None:
        """As Keras 2's `save_weights` wrote HDF5."""
        import h5py
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        with warnings.catch_warnings(), h5py.File(path, "w") as file:
            warnings.simplefilter("ignore")  # Keras asks torch for arrays in a way that numpy 2 deprecates
            save_weights_to_hdf5_group(file, self.model)

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, 400, 400, 3) in [0, 1] -> (n, 16)."""
        with torch.inference_mode():
            return np.asarray(self.model(x, training=False).numpy())

    def activations(self, x: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """The outputs of all layers, (n, height, width, channels), and of the dense layer as `probabilities`."""
        with torch.inference_mode():
            found: dict[str, torch.Tensor] = self.trace(x, training=False)
        return found
