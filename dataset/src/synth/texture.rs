//! Value noise: the backgrounds and the grain of the shapes.

/// Smooth pseudo-random field in 0..1 with features of about `scale` pixels.
pub(super) fn noise(seed: u64, x: f32, y: f32, scale: f32) -> f32 {
    let (x, y) = (x / scale, y / scale);
    let (x0, y0) = (x.floor(), y.floor());
    let (fx, fy) = (smooth(x - x0), smooth(y - y0));
    let corner = |dx: i64, dy: i64| lattice(seed, x0 as i64 + dx, y0 as i64 + dy);
    let top = corner(0, 0) * (1.0 - fx) + corner(1, 0) * fx;
    let bottom = corner(0, 1) * (1.0 - fx) + corner(1, 1) * fx;
    top * (1.0 - fy) + bottom * fy
}

/// Three octaves of [`noise`].
pub(super) fn fractal(seed: u64, x: f32, y: f32, scale: f32) -> f32 {
    let octaves = [(1.0, 0.55), (2.7, 0.3), (7.1, 0.15)];
    octaves
        .iter()
        .enumerate()
        .map(|(i, (f, a))| a * noise(seed.wrapping_add(i as u64), x * f, y * f, scale))
        .sum()
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

fn lattice(seed: u64, x: i64, y: i64) -> f32 {
    // splitmix64's finaliser over the cell's coordinates.
    let mut z = seed ^ (x as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (y as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
}
