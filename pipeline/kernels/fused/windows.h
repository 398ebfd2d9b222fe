// Local average pooling: the sum over a window of pixels around each one, as weights of pixel pairs with a factor an axis.
// Shared by the CPU loops and the GPU kernels; it includes nothing.
#pragma once

// For a window of 2 c + 1 pixels around each of an axis of n: how many of them hold both i and other.
template <class Int> NTK_INLINE Int windows_with_both(Int n, Int c, Int i, Int other) {
    const Int first = i < other ? i : other, last = i < other ? other : i;
    const Int to = first + c < n - 1 ? first + c : n - 1, from = last - c > 0 ? last - c : 0;
    return to < from ? 0 : to - from + 1;
}
