"""One documented resize, the same in training, evaluation and prediction, in float32."""

import tensorflow as tf

from tlflax.data._tensorflow import one_thread_an_operation


def resize_image(
    image: tf.Tensor,
    size: tuple[int, int],
    mode: str,
    *,
    antialias: bool,
    interpolation: str = 'bilinear',
) -> tf.Tensor:
    """Resizes with half-pixel centers.

    Args:
        image: uint8 or float32 [h, w, 3], of any h and w.
        size: (height, width) of the result.
        mode: 'stretch' ignores the aspect ratio; 'pad' fits the image inside, with zeros around it,
            as `PIL.ImageOps.pad`; 'crop' covers `size` and cuts the center out, as
            `PIL.ImageOps.fit`.
        antialias: Whether to widen the filter when shrinking, as Pillow does.
        interpolation: 'bilinear', or 'bicubic' with Pillow's filter.

    Returns:
        float32 [*size, 3].
    """
    target = tf.constant(size)
    source = tf.shape(image)[:2]
    ratio = tf.cast(target, tf.float64) / tf.cast(source, tf.float64)
    if mode == 'pad':
        inner = tf.cast(tf.round(tf.cast(source, tf.float64) * tf.reduce_min(ratio)), tf.int32)
        inner = tf.clip_by_value(inner, 1, target)
        before = tf.cast(tf.round(tf.cast(target - inner, tf.float64) / 2), tf.int32)
        result = _scale(image, inner, antialias, interpolation)
        result = tf.image.pad_to_bounding_box(result, before[0], before[1], *size)
    elif mode == 'crop':
        factor = tf.reduce_max(ratio)
        offset = (tf.cast(target, tf.float64) - tf.cast(source, tf.float64) * factor) / 2
        scale = tf.stack([factor, factor])
        result = _resample(image, target, scale, offset, antialias, interpolation)
    else:
        result = _scale(image, target, antialias, interpolation)
    result.set_shape([*size, 3])
    return result


def _scale(image: tf.Tensor, size: tf.Tensor, antialias: bool, interpolation: str) -> tf.Tensor:
    """Resizes to exactly `size`."""
    source = tf.shape(image)[:2]

    def resampled() -> tf.Tensor:
        nowhere = tf.constant((0.0, 0.0))
        return _resample(image, size, size / source, nowhere, antialias, interpolation)

    if interpolation == 'bicubic':
        return resampled()
    if not antialias:
        return _interpolate(image, size)
    # An image that grows needs no wider filter, and this operation is faster, most so on floats.
    return tf.cond(
        tf.reduce_all(size >= source),
        lambda: _interpolate(tf.cast(image, tf.float32), size),
        resampled,
    )


def _interpolate(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ResizeBilinear(images=image[None], size=size, half_pixel_centers=True)[0]


def _resample(
    image: tf.Tensor,
    size: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    antialias: bool,
    interpolation: str,
) -> tf.Tensor:
    """Resamples with a filter: output position = scale * input position + offset.

    Resizes rows and columns separately, each as one column of wide pixels [1, n, 1, values]. The
    result is the same to the bit as in one step and takes a third of the time, as the operation
    loops over the values of a pixel, of which there are many here, and only three of a color.

    The operation shares the rows of its result among the threads of the whole process, even where
    the pipeline allows one thread for an image, and then waits for them. If there are such threads,
    pixels are one row [1, 1, n, values], which is not shared, but is copied as floats first.
    """
    alone = one_thread_an_operation()
    high, wide, _ = tf.unstack(tf.shape(image))
    sizes, scales, offsets = (
        tf.unstack(values)
        for values in (size, tf.cast(scale, tf.float32), tf.cast(offset, tf.float32))
    )

    def both(value: tf.Tensor | int, other: float) -> tf.Tensor:
        return tf.stack([value, other] if alone else [other, value])

    def line(values: tf.Tensor, length: tf.Tensor, of: tf.Tensor) -> tf.Tensor:
        return tf.reshape(values, [1, length, 1, of] if alone else [1, 1, length, of])

    def turned(values: tf.Tensor) -> tf.Tensor:
        return _transpose(values, [0, 3, 2, 1] if alone else [0, 1, 3, 2])

    def resized(pixels: tf.Tensor, axis: int) -> tf.Tensor:
        result = tf.raw_ops.ScaleAndTranslate(
            images=pixels,
            size=both(sizes[axis], 1),
            scale=both(scales[axis], 1.0),
            translation=both(offsets[axis], 0.0),
            kernel_type={'bilinear': 'triangle', 'bicubic': 'keyscubic'}[interpolation],
            antialias=antialias,
        )
        # Cubic interpolation overshoots at edges; Pillow cuts that off after each pass.
        return tf.clip_by_value(result, 0, 255) if interpolation == 'bicubic' else result

    def rows(values: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        return resized(line(values, high, 3 * width), 0)

    def columns(values: tf.Tensor, height: tf.Tensor) -> tf.Tensor:
        result = resized(line(turned(line(values, height, 3 * wide)), wide, 3 * height), 1)
        return turned(line(result, 3 * sizes[1], height))

    # Pillow resizes columns first, and what is cut off depends on it.
    if interpolation == 'bicubic':
        result = rows(columns(image, high), sizes[1])
    else:
        result = columns(rows(image, wide), sizes[0])
    return tf.reshape(result, [sizes[0], sizes[1], 3])


def _transpose(values: tf.Tensor, order: list[int]) -> tf.Tensor:
    """Transposes a matrix; of numbers, not of pixels, which is slow without oneDNN."""
    if values.dtype != tf.float32:
        return tf.transpose(values, order)
    # With oneDNN, floats are shared among threads as described above; their bits are not. They are
    # uint32, as oneDNN says of int32 on some processors that it does not support them.
    return tf.bitcast(tf.transpose(tf.bitcast(values, tf.uint32), order), tf.float32)
