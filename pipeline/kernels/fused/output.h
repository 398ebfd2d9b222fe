// Where a call's values go: one matrix a kernel, pooling and depth, written in place.
#pragma once

namespace {

struct Output {
    // for each pooling, and of it for each layer, the NTK's and the NNGP's matrix at the depth that reads it out, null where
    // it is not wanted
    double *const *ntk, *const *nngp;
    int layers;
    long stride;           // entries from a row to the next
    bool symmetric;        // the lower triangle is computed, and mirrored
    bool train_last;       // the readout layer's own part, the NNGP, belongs to the NTK
    const double* shares;  // for each pooling, what the sum over pixel pairs is divided by

    bool wanted(long i, long j) const { return !symmetric || j <= i; }

    // slot: of a pooling and layer.  r, k: sums of R and K over pixels
    void put(int slot, long i, long j, double r, double k) const {
        const double share = shares[slot / layers];
        r /= share, k /= share;
        if (ntk[slot]) write(ntk[slot], i, j, train_last ? r : r - k);
        if (nngp[slot]) write(nngp[slot], i, j, k);
    }

private:
    void write(double* matrix, long i, long j, double value) const {
        matrix[i * stride + j] = value;
        if (symmetric) matrix[j * stride + i] = value;
    }
};

}  // namespace
