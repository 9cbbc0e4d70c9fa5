//! The tables of the paper and its successors (`policy_v0` … `policy_v3`).

/// A step's name in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    AutoContrast,
    Equalize,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    Cutout,
    /// `BBox_Cutout`: within one box.
    BoxCutout,
    /// `Rotate_BBox`, as the next four: image and boxes.
    Rotate,
    TranslateX,
    TranslateY,
    ShearX,
    ShearY,
    /// `ShearX_Only_BBoxes`, as the rest: the content of boxes alone; the boxes stay.
    ShearXBoxes,
    ShearYBoxes,
    TranslateYBoxes,
    FlipBoxes,
    EqualizeBoxes,
    CutoutBoxes,
}

impl Kind {
    /// Whether the step works on the content of each box.
    pub(super) fn boxes_alone(self) -> bool {
        matches!(
            self,
            Self::ShearXBoxes
                | Self::ShearYBoxes
                | Self::TranslateYBoxes
                | Self::FlipBoxes
                | Self::EqualizeBoxes
                | Self::CutoutBoxes
        )
    }
}

/// A step, its probability and its level.
pub(super) type Step = (Kind, f32, f32);
/// Sub-policies, each as likely.
pub(super) type Policy = [&'static [Step]];

/// The policy of a name.
pub(super) fn named(name: &str) -> Option<&'static Policy> {
    match name {
        "v0" => Some(&V1[..5]),
        "v1" => Some(V1),
        "v2" => Some(V2),
        "v3" => Some(V3),
        "test" => Some(TEST),
        _ => None,
    }
}

use Kind::{
    AutoContrast, BoxCutout, Brightness, Color, Contrast, Cutout, CutoutBoxes, Equalize, EqualizeBoxes, FlipBoxes,
    Posterize, Rotate, Sharpness, ShearX, ShearXBoxes, ShearY, ShearYBoxes, Solarize, SolarizeAdd, TranslateX,
    TranslateY, TranslateYBoxes,
};

const TEST: &Policy = &[&[(TranslateX, 1.0, 4.0), (Equalize, 1.0, 10.0)]];

/// The first five are v0.
const V1: &Policy = &[
    &[(TranslateX, 0.6, 4.0), (Equalize, 0.8, 10.0)],
    &[(TranslateYBoxes, 0.2, 2.0), (Cutout, 0.8, 8.0)],
    &[(Sharpness, 0.0, 8.0), (ShearX, 0.4, 0.0)],
    &[(ShearY, 1.0, 2.0), (TranslateYBoxes, 0.6, 6.0)],
    &[(Rotate, 0.6, 10.0), (Color, 1.0, 6.0)],
    &[(Color, 0.0, 0.0), (ShearXBoxes, 0.8, 4.0)],
    &[(ShearYBoxes, 0.8, 2.0), (FlipBoxes, 0.0, 10.0)],
    &[(Equalize, 0.6, 10.0), (TranslateX, 0.2, 2.0)],
    &[(Color, 1.0, 10.0), (TranslateYBoxes, 0.4, 6.0)],
    &[(Rotate, 0.8, 10.0), (Contrast, 0.0, 10.0)],
    &[(Cutout, 0.2, 2.0), (Brightness, 0.8, 10.0)],
    &[(Color, 1.0, 6.0), (Equalize, 1.0, 2.0)],
    &[(CutoutBoxes, 0.4, 6.0), (TranslateYBoxes, 0.8, 2.0)],
    &[(Color, 0.2, 8.0), (Rotate, 0.8, 10.0)],
    &[(Sharpness, 0.4, 4.0), (TranslateYBoxes, 0.0, 4.0)],
    &[(Sharpness, 1.0, 4.0), (SolarizeAdd, 0.4, 4.0)],
    &[(Rotate, 1.0, 8.0), (Sharpness, 0.2, 8.0)],
    &[(ShearY, 0.6, 10.0), (EqualizeBoxes, 0.6, 8.0)],
    &[(ShearX, 0.2, 6.0), (TranslateYBoxes, 0.2, 10.0)],
    &[(SolarizeAdd, 0.6, 8.0), (Brightness, 0.8, 10.0)],
];

const V2: &Policy = &[
    &[(Color, 0.0, 6.0), (Cutout, 0.6, 8.0), (Sharpness, 0.4, 8.0)],
    &[(Rotate, 0.4, 8.0), (Sharpness, 0.4, 2.0), (Rotate, 0.8, 10.0)],
    &[(TranslateY, 1.0, 8.0), (AutoContrast, 0.8, 2.0)],
    &[(AutoContrast, 0.4, 6.0), (ShearX, 0.8, 8.0), (Brightness, 0.0, 10.0)],
    &[(SolarizeAdd, 0.2, 6.0), (Contrast, 0.0, 10.0), (AutoContrast, 0.6, 0.0)],
    &[(Cutout, 0.2, 0.0), (Solarize, 0.8, 8.0), (Color, 1.0, 4.0)],
    &[(TranslateY, 0.0, 4.0), (Equalize, 0.6, 8.0), (Solarize, 0.0, 10.0)],
    &[(TranslateY, 0.2, 2.0), (ShearY, 0.8, 8.0), (Rotate, 0.8, 8.0)],
    &[(Cutout, 0.8, 8.0), (Brightness, 0.8, 8.0), (Cutout, 0.2, 2.0)],
    &[(Color, 0.8, 4.0), (TranslateY, 1.0, 6.0), (Rotate, 0.6, 6.0)],
    &[(Rotate, 0.6, 10.0), (BoxCutout, 1.0, 4.0), (Cutout, 0.2, 8.0)],
    &[(Rotate, 0.0, 0.0), (Equalize, 0.6, 6.0), (ShearY, 0.6, 8.0)],
    &[(Brightness, 0.8, 8.0), (AutoContrast, 0.4, 2.0), (Brightness, 0.2, 2.0)],
    &[(TranslateY, 0.4, 8.0), (Solarize, 0.4, 6.0), (SolarizeAdd, 0.2, 10.0)],
    &[(Contrast, 1.0, 10.0), (SolarizeAdd, 0.2, 8.0), (Equalize, 0.2, 4.0)],
];

const V3: &Policy = &[
    &[(Posterize, 0.8, 2.0), (TranslateX, 1.0, 8.0)],
    &[(BoxCutout, 0.2, 10.0), (Sharpness, 1.0, 8.0)],
    &[(Rotate, 0.6, 8.0), (Rotate, 0.8, 10.0)],
    &[(Equalize, 0.8, 10.0), (AutoContrast, 0.2, 10.0)],
    &[(SolarizeAdd, 0.2, 2.0), (TranslateY, 0.2, 8.0)],
    &[(Sharpness, 0.0, 2.0), (Color, 0.4, 8.0)],
    &[(Equalize, 1.0, 8.0), (TranslateY, 1.0, 8.0)],
    &[(Posterize, 0.6, 2.0), (Rotate, 0.0, 10.0)],
    &[(AutoContrast, 0.6, 0.0), (Rotate, 1.0, 6.0)],
    &[(Equalize, 0.0, 4.0), (Cutout, 0.8, 10.0)],
    &[(Brightness, 1.0, 2.0), (TranslateY, 1.0, 6.0)],
    &[(Contrast, 0.0, 2.0), (ShearY, 0.8, 0.0)],
    &[(AutoContrast, 0.8, 10.0), (Contrast, 0.2, 10.0)],
    &[(Rotate, 1.0, 10.0), (Cutout, 1.0, 10.0)],
    &[(SolarizeAdd, 0.8, 6.0), (Equalize, 0.8, 8.0)],
];
