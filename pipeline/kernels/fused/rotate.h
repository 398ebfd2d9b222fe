// The second image of a pair at every offset.
#pragma once
#include "images.h"

namespace {

// The second image of a pair for every offset d2: rows doubled where one plane fills the lanes, else for each group of
// d2 the image's row rotated by each of them side by side.
void rotate(const float* image, const Shape& shape, float* out) {
    const int w = shape.columns, row_floats = shape.rotated();
    const long rows = (long)(shape.channels + 2 * shape.layers) * shape.rows;
    for (long r = 0; r < rows; r++) {
        const float* from = image + r * LANES;
        float* to = out + r * row_floats;
        if (shape.packed() == 1) {
            for (int k = 0; k < row_floats; k++) to[k] = from[k % w];
            continue;
        }
        for (int lane = 0; lane < row_floats; lane++) {
            const int slot = lane % LANES / w, j = lane % LANES % w, d2 = lane / LANES * shape.packed() + slot;
            to[lane] = slot < shape.packed() && d2 < w ? from[(j + d2) % w] : 0.f;
        }
    }
}

}  // namespace
