//! The two matrix products of a convolution, on blocks that the caller keeps in cache.
//!
//! - [`nn`]: `C = A · B` with `B` packed into panels: forward (`B` = weights) and the gradient of the input (`B` = weights transposed).
//! - [`tn`]: `C += Aᵀ · B`, the gradient of the weights.
//!
//! Each keeps a tile of `C` in registers ([`Simd::MR`] rows of [`Simd::NV`] vectors), broadcasts elements of `A` and streams `B`. The order of
//! the additions depends on the shapes alone. Numbers of columns are multiples of 16 (activations are stored with padded channels).

use super::isa::{Isa, Kind, multiversion};
use super::simd::Simd;

/// Columns of a packed panel.
pub(crate) fn panel_width(isa: Isa) -> usize {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => 32,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => 16,
        Kind::Baseline => 8,
    }
}

/// Which rows of a packed `B` a product takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depth {
    /// The first.
    pub(crate) first: usize,
    /// How many.
    pub(crate) len: usize,
    /// How many `B` has.
    pub(crate) all: usize,
}

impl Depth {
    /// All of them.
    pub(crate) fn whole(rows: usize) -> Self {
        Self {
            first: 0,
            len: rows,
            all: rows,
        }
    }
}

/// Packs rows `depth` of panel `panel` of `B` (`depth.all` by `n`; of these rows, element `(i, j)` lies at `i * row_stride + j * column_stride`) to
/// their place in `packed`.
///
/// # Safety
/// `source` holds every element named, `packed` holds `depth.all * n`; concurrent calls must be for different panels.
pub(crate) unsafe fn pack_panel(
    isa: Isa,
    panel: usize,
    (depth, n): (Depth, usize),
    source: *const f32,
    (row_stride, column_stride): (usize, usize),
    packed: *mut f32,
) {
    let width = panel_width(isa);
    let first = panel * width;
    let columns = width.min(n - first);
    unsafe {
        let mut to = packed.add(first * depth.all + depth.first * columns);
        for i in 0..depth.len {
            let from = source.add(i * row_stride + first * column_stride);
            if column_stride == 1 {
                std::ptr::copy_nonoverlapping(from, to, columns);
            } else {
                for j in 0..columns {
                    *to.add(j) = *from.add(j * column_stride);
                }
            }
            to = to.add(columns);
        }
    }
}

/// How many rows the next tile takes of `left`: full tiles, and no tiny remainder where two halves do.
#[inline(always)]
#[allow(clippy::inline_always)]
fn tile<S: Simd>(left: usize) -> usize {
    let largest = match left {
        0..2 => 1,
        2..4 => 2,
        4..6 => 4,
        6..8 => 6,
        8..12 => 8,
        12.. => {
            if left == 16 {
                8
            } else {
                12
            }
        }
    };
    largest.min(S::MR)
}

macro_rules! by_rows {
    ($rows:expr, $kernel:ident::<$s:ty, _, $nv:literal>($($arg:expr),*)) => {
        match $rows {
            12 => $kernel::<$s, 12, $nv>($($arg),*),
            8 => $kernel::<$s, 8, $nv>($($arg),*),
            6 => $kernel::<$s, 6, $nv>($($arg),*),
            4 => $kernel::<$s, 4, $nv>($($arg),*),
            2 => $kernel::<$s, 2, $nv>($($arg),*),
            _ => $kernel::<$s, 1, $nv>($($arg),*),
        }
    };
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn finish<S: Simd, const MR: usize, const NV: usize>(
    tile: &[[S::V; NV]; MR],
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    unsafe {
        for (i, row) in tile.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let p = c.add(i * ldc + j * S::LANES);
                S::store(p, if accumulate { S::add(S::load(p), sum) } else { sum });
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)]
unsafe fn nn_tile<S: Simd, const MR: usize, const NV: usize>(
    k: usize,
    a: *const f32,
    lda: usize,
    b: *const f32,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    unsafe {
        let mut sums = [[S::zero(); NV]; MR];
        let mut b = b;
        // One base pointer for four rows, so that the addresses fit the general registers.
        let mut bases = [a; 3];
        for (group, base) in bases.iter_mut().enumerate() {
            *base = a.wrapping_add(4 * group * lda);
        }
        for _ in 0..k {
            let mut row = [S::zero(); NV];
            for (j, v) in row.iter_mut().enumerate() {
                *v = S::load(b.add(j * S::LANES));
            }
            for i in 0..MR {
                let x = S::splat(*bases[i / 4].wrapping_add((i % 4) * lda));
                for j in 0..NV {
                    sums[i][j] = S::mul_add(x, row[j], sums[i][j]);
                }
            }
            b = b.add(NV * S::LANES);
            for base in &mut bases {
                *base = base.wrapping_add(1);
            }
        }
        finish::<S, MR, NV>(&sums, c, ldc, accumulate);
    }
}

#[inline(always)]
#[allow(clippy::inline_always, clippy::too_many_arguments)]
unsafe fn tn_tile<S: Simd, const MR: usize, const NV: usize>(
    m: usize,
    a: *const f32,
    lda: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    unsafe {
        let mut sums = [[S::zero(); NV]; MR];
        let (mut a, mut b) = (a, b);
        for _ in 0..m {
            let mut row = [S::zero(); NV];
            for (j, v) in row.iter_mut().enumerate() {
                *v = S::load(b.add(j * S::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(i));
                for (sum, &v) in sums.iter_mut().zip(&row) {
                    *sum = S::mul_add(x, v, *sum);
                }
            }
            a = a.wrapping_add(lda);
            b = b.wrapping_add(ldb);
        }
        finish::<S, MR, NV>(&sums, c, ldc, accumulate);
    }
}

#[inline(always)]
#[allow(clippy::inline_always, clippy::too_many_arguments)]
unsafe fn nn_block<S: Simd>(
    m: usize,
    depth: Depth,
    n: usize,
    a: *const f32,
    lda: usize,
    packed: *const f32,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    let width = S::NV * S::LANES;
    let mut column = 0;
    while column < n {
        let columns = width.min(n - column);
        let mut row = 0;
        while row < m {
            let rows = tile::<S>(m - row);
            unsafe {
                let b = packed.add(column * depth.all + depth.first * columns);
                let (k, a, c) = (depth.len, a.add(row * lda), c.add(row * ldc + column));
                if columns == width {
                    by_rows!(rows, nn_tile::<S, _, 2>(k, a, lda, b, c, ldc, accumulate));
                } else {
                    by_rows!(rows, nn_tile::<S, _, 1>(k, a, lda, b, c, ldc, accumulate));
                }
            }
            row += rows;
        }
        column += columns;
    }
}

#[inline(always)]
#[allow(clippy::inline_always, clippy::too_many_arguments)]
unsafe fn tn_block<S: Simd>(
    m: usize,
    k: usize,
    n: usize,
    a: *const f32,
    lda: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    let width = S::NV * S::LANES;
    let mut column = 0;
    while column < n {
        let columns = width.min(n - column);
        let mut row = 0;
        while row < k {
            let rows = tile::<S>(k - row);
            unsafe {
                let (a, b, c) = (a.add(row), b.add(column), c.add(row * ldc + column));
                if columns == width {
                    by_rows!(rows, tn_tile::<S, _, 2>(m, a, lda, b, ldb, c, ldc, accumulate));
                } else {
                    by_rows!(rows, tn_tile::<S, _, 1>(m, a, lda, b, ldb, c, ldc, accumulate));
                }
            }
            row += rows;
        }
        column += columns;
    }
}

multiversion! {
    /// `C[m, n] (+)= A[m, k] · B[k, n]`, row-major with leading dimensions `lda`, `ldc`; `B` are the rows `depth` of what [`pack_panel`] packed;
    /// `n` a multiple of 16.
    ///
    /// # Safety
    /// The pointers hold these matrices, `c` overlaps neither of the others.
    pub(crate) unsafe fn nn = nn_block(
        m: usize, depth: Depth, n: usize, a: *const f32, lda: usize, packed: *const f32, c: *mut f32, ldc: usize, accumulate: bool,
    )
}

multiversion! {
    /// `C[k, n] (+)= A[m, k]ᵀ · B[m, n]`, all row-major; `n` a multiple of 16.
    ///
    /// # Safety
    /// The pointers hold these matrices, `c` overlaps neither of the others.
    pub(crate) unsafe fn tn = tn_block(
        m: usize, k: usize, n: usize, a: *const f32, lda: usize, b: *const f32, ldb: usize, c: *mut f32, ldc: usize, accumulate: bool,
    )
}
