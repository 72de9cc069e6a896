"""A run that another backend began goes on here as if it had never stopped."""

import keras
import numpy as np
import pytest
from continuation import EPOCHS, LEARNING_RATES, SAVED_AFTER, WRITERS, losses, read

FOREIGN = next(w for w in WRITERS if w != keras.backend.backend())


@pytest.mark.parametrize("method", sorted(LEARNING_RATES))
def test_the_loss_curve_goes_on(method, tmp_path):
    model, curve = read(FOREIGN, method, tmp_path)
    steps = 2 * SAVED_AFTER
    assert int(model.seen_batches) == int(model.optimizer.iterations) == steps
    rest = losses(model, method, initial_epoch=SAVED_AFTER)
    np.testing.assert_allclose(rest, curve[SAVED_AFTER:], rtol=1e-4, atol=1e-4)
    # The curve moves: a run that began anew, or stood still, would be far from it.
    assert len(curve) == EPOCHS and np.ptp(curve[SAVED_AFTER - 1 :]) > 5e-3
    if hasattr(model, "teacher_step"):
        assert int(model.teacher_step) == 2 * EPOCHS
    if method == "moco":
        assert int(model.queue.pointer) == 16 * EPOCHS % model.queue.size
