//! The colours of classes: 126 names of CSS in the order of the reference's `STANDARD_COLORS`, so that a class looks as its users know it.

use image::Rgb;

/// By the label map's id, modulo their number: class 1 is chartreuse, class 2 aqua.
const STANDARD_COLORS: [(&str, u32); 126] = [
    ("AliceBlue", 0xF0_F8FF),
    ("Chartreuse", 0x7F_FF00),
    ("Aqua", 0x00_FFFF),
    ("Aquamarine", 0x7F_FFD4),
    ("Azure", 0xF0_FFFF),
    ("Beige", 0xF5_F5DC),
    ("Bisque", 0xFF_E4C4),
    ("BlanchedAlmond", 0xFF_EBCD),
    ("BlueViolet", 0x8A_2BE2),
    ("BurlyWood", 0xDE_B887),
    ("CadetBlue", 0x5F_9EA0),
    ("AntiqueWhite", 0xFA_EBD7),
    ("Chocolate", 0xD2_691E),
    ("Coral", 0xFF_7F50),
    ("CornflowerBlue", 0x64_95ED),
    ("Cornsilk", 0xFF_F8DC),
    ("Crimson", 0xDC_143C),
    ("Cyan", 0x00_FFFF),
    ("DarkCyan", 0x00_8B8B),
    ("DarkGoldenRod", 0xB8_860B),
    ("DarkGrey", 0xA9_A9A9),
    ("DarkKhaki", 0xBD_B76B),
    ("DarkOrange", 0xFF_8C00),
    ("DarkOrchid", 0x99_32CC),
    ("DarkSalmon", 0xE9_967A),
    ("DarkSeaGreen", 0x8F_BC8F),
    ("DarkTurquoise", 0x00_CED1),
    ("DarkViolet", 0x94_00D3),
    ("DeepPink", 0xFF_1493),
    ("DeepSkyBlue", 0x00_BFFF),
    ("DodgerBlue", 0x1E_90FF),
    ("FireBrick", 0xB2_2222),
    ("FloralWhite", 0xFF_FAF0),
    ("ForestGreen", 0x22_8B22),
    ("Fuchsia", 0xFF_00FF),
    ("Gainsboro", 0xDC_DCDC),
    ("GhostWhite", 0xF8_F8FF),
    ("Gold", 0xFF_D700),
    ("GoldenRod", 0xDA_A520),
    ("Salmon", 0xFA_8072),
    ("Tan", 0xD2_B48C),
    ("HoneyDew", 0xF0_FFF0),
    ("HotPink", 0xFF_69B4),
    ("IndianRed", 0xCD_5C5C),
    ("Ivory", 0xFF_FFF0),
    ("Khaki", 0xF0_E68C),
    ("Lavender", 0xE6_E6FA),
    ("LavenderBlush", 0xFF_F0F5),
    ("LawnGreen", 0x7C_FC00),
    ("LemonChiffon", 0xFF_FACD),
    ("LightBlue", 0xAD_D8E6),
    ("LightCoral", 0xF0_8080),
    ("LightCyan", 0xE0_FFFF),
    ("LightGoldenRodYellow", 0xFA_FAD2),
    ("LightGray", 0xD3_D3D3),
    ("LightGrey", 0xD3_D3D3),
    ("LightGreen", 0x90_EE90),
    ("LightPink", 0xFF_B6C1),
    ("LightSalmon", 0xFF_A07A),
    ("LightSeaGreen", 0x20_B2AA),
    ("LightSkyBlue", 0x87_CEFA),
    ("LightSlateGray", 0x77_8899),
    ("LightSlateGrey", 0x77_8899),
    ("LightSteelBlue", 0xB0_C4DE),
    ("LightYellow", 0xFF_FFE0),
    ("Lime", 0x00_FF00),
    ("LimeGreen", 0x32_CD32),
    ("Linen", 0xFA_F0E6),
    ("Magenta", 0xFF_00FF),
    ("MediumAquaMarine", 0x66_CDAA),
    ("MediumOrchid", 0xBA_55D3),
    ("MediumPurple", 0x93_70DB),
    ("MediumSeaGreen", 0x3C_B371),
    ("MediumSlateBlue", 0x7B_68EE),
    ("MediumSpringGreen", 0x00_FA9A),
    ("MediumTurquoise", 0x48_D1CC),
    ("MediumVioletRed", 0xC7_1585),
    ("MintCream", 0xF5_FFFA),
    ("MistyRose", 0xFF_E4E1),
    ("Moccasin", 0xFF_E4B5),
    ("NavajoWhite", 0xFF_DEAD),
    ("OldLace", 0xFD_F5E6),
    ("Olive", 0x80_8000),
    ("OliveDrab", 0x6B_8E23),
    ("Orange", 0xFF_A500),
    ("OrangeRed", 0xFF_4500),
    ("Orchid", 0xDA_70D6),
    ("PaleGoldenRod", 0xEE_E8AA),
    ("PaleGreen", 0x98_FB98),
    ("PaleTurquoise", 0xAF_EEEE),
    ("PaleVioletRed", 0xDB_7093),
    ("PapayaWhip", 0xFF_EFD5),
    ("PeachPuff", 0xFF_DAB9),
    ("Peru", 0xCD_853F),
    ("Pink", 0xFF_C0CB),
    ("Plum", 0xDD_A0DD),
    ("PowderBlue", 0xB0_E0E6),
    ("Purple", 0x80_0080),
    ("Red", 0xFF_0000),
    ("RosyBrown", 0xBC_8F8F),
    ("RoyalBlue", 0x41_69E1),
    ("SaddleBrown", 0x8B_4513),
    ("Green", 0x00_8000),
    ("SandyBrown", 0xF4_A460),
    ("SeaGreen", 0x2E_8B57),
    ("SeaShell", 0xFF_F5EE),
    ("Sienna", 0xA0_522D),
    ("Silver", 0xC0_C0C0),
    ("SkyBlue", 0x87_CEEB),
    ("SlateBlue", 0x6A_5ACD),
    ("SlateGray", 0x70_8090),
    ("SlateGrey", 0x70_8090),
    ("Snow", 0xFF_FAFA),
    ("SpringGreen", 0x00_FF7F),
    ("SteelBlue", 0x46_82B4),
    ("GreenYellow", 0xAD_FF2F),
    ("Teal", 0x00_8080),
    ("Thistle", 0xD8_BFD8),
    ("Tomato", 0xFF_6347),
    ("Turquoise", 0x40_E0D0),
    ("Violet", 0xEE_82EE),
    ("Wheat", 0xF5_DEB3),
    ("White", 0xFF_FFFF),
    ("WhiteSmoke", 0xF5_F5F5),
    ("Yellow", 0xFF_FF00),
    ("YellowGreen", 0x9A_CD32),
];

/// The colour of a class, by its id in the label map (from 1).
pub fn of_class(id: usize) -> Rgb<u8> {
    let (_, hex) = STANDARD_COLORS[id % STANDARD_COLORS.len()];
    rgb(hex)
}

/// A colour of the list or black by its name, whatever its capitals; `None` for others.
pub fn named(name: &str) -> Option<Rgb<u8>> {
    if name.eq_ignore_ascii_case("black") {
        return Some(rgb(0));
    }
    let found = STANDARD_COLORS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|&(_, hex)| rgb(hex))
}

/// Black or white: what can be read on `background`.
pub fn text_on(Rgb([r, g, b]): Rgb<u8>) -> Rgb<u8> {
    let luminance = 0.299 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b);
    if luminance > 110.0 { rgb(0) } else { rgb(0xFF_FFFF) }
}

fn rgb(hex: u32) -> Rgb<u8> {
    let [_, r, g, b] = hex.to_be_bytes();
    Rgb([r, g, b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_the_colours_that_users_know() {
        assert_eq!(of_class(1), named("chartreuse").unwrap());
        assert_eq!(of_class(2), Rgb([0, 255, 255]));
        assert_eq!(of_class(3), named("Aquamarine").unwrap());
        assert_eq!(of_class(90), of_class(90 + 126));
        assert_eq!(of_class(125), named("YellowGreen").unwrap());
        assert_eq!(named("Mauve-ish"), None);
    }

    #[test]
    fn labels_can_be_read() {
        assert_eq!(text_on(of_class(1)), rgb(0));
        assert_eq!(text_on(named("Purple").unwrap()), rgb(0xFF_FFFF));
    }
}
