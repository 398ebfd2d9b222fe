// Where a call's values go: one matrix a kernel and depth, written in place.
#pragma once

namespace {

struct Output {
    // for each layer the NTK's and the NNGP's matrix at the depth that reads it out, null where it is not wanted
    double *const *ntk, *const *nngp;
    long stride;      // entries from a row to the next
    bool symmetric;   // the lower triangle is computed, and mirrored
    bool train_last;  // the readout layer's own part, the NNGP, belongs to the NTK
    double share;     // of pixel pairs: the mean is the sum over them by this

    bool wanted(long i, long j) const { return !symmetric || j <= i; }

    // r, k: sums of R and K over pixels after layer h
    void put(int h, long i, long j, double r, double k) const {
        r /= share, k /= share;
        if (ntk[h]) write(ntk[h], i, j, train_last ? r : r - k);
        if (nngp[h]) write(nngp[h], i, j, k);
    }

private:
    void write(double* matrix, long i, long j, double value) const {
        matrix[i * stride + j] = value;
        if (symmetric) matrix[j * stride + i] = value;
    }
};

}  // namespace
