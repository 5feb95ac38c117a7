"""Pictures in and out of the VAE, against the public image processor (fixture family `vae`)."""

import numpy as np
from PIL import Image

from mindglm.models.vae.pixels import pixels_of, preprocess
from tests import golden


def test_preprocessing_of_a_condition_image():
    data = golden.fixture("vae")
    expected = data["preprocess.out"]
    ours = preprocess(Image.fromarray(data["preprocess.image"]), *expected.shape[2:])
    assert golden.rel_error(ours[None], expected) <= 1e-6 and ours.dtype == np.float32


def test_pixels_of_decoded_images():
    data = golden.fixture("vae")
    np.testing.assert_array_equal(pixels_of(data["noise_decoded"]), data["postprocessed_u8"])
