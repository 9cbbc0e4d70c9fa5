//! A set to train on and one to evaluate on, with every class on both sides.
//!
//! Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data", 2011): the rarest
//! class is shared out first, each image to the side that still wants most of it. Images with equal bytes stay together, since an
//! image on both sides makes an evaluation meaningless.

mod records;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::SeedableRng;
use rand::seq::SliceRandom as _;

pub use records::{Options, Report, run};

/// Where an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// To be trained on.
    Train,
    /// To be evaluated on.
    Eval,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Train => Self::Eval,
            Self::Eval => Self::Train,
        }
    }
}

/// What is known of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its classes, in any order; none for a picture of the background.
    pub classes: Vec<i64>,
    /// Images with the same digest go to the same side.
    pub digest: Vec<u8>,
}

/// Images without a box count as a class of their own.
const BACKGROUND: i64 = i64::MIN;

/// A side for each image: a function of the images, the share and the seed alone.
///
/// `eval_share` is the share of images that go to [`Side::Eval`]. A class in two or more images that differ is on both sides
/// whenever the images allow it; [`one_sided`] tells those for which they do not.
pub fn assign(images: &[Image], eval_share: f64, seed: u64) -> Vec<Side> {
    let mut groups: Vec<Group> = Vec::new();
    let mut known: HashMap<&[u8], usize> = HashMap::new();
    for (index, image) in images.iter().enumerate() {
        let group = *known.entry(&image.digest).or_insert_with(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        groups[group].members.push(index);
        groups[group].classes.extend(&image.classes);
        if image.classes.is_empty() {
            groups[group].classes.insert(BACKGROUND);
        }
    }
    groups.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed));
    let mut sides = stratify(&groups, eval_share.clamp(0.0, 1.0));
    if eval_share > 0.0 && eval_share < 1.0 {
        mend(&groups, &mut sides);
    }
    let mut out = vec![Side::Train; images.len()];
    for (group, side) in groups.iter().zip(sides) {
        for &member in &group.members {
            out[member] = side;
        }
    }
    out
}

/// The classes that are on one side only although they are in more than one image.
pub fn one_sided(images: &[Image], sides: &[Side]) -> Vec<i64> {
    let mut found: BTreeMap<i64, (usize, BTreeSet<Side>)> = BTreeMap::new();
    for (image, &side) in images.iter().zip(sides) {
        for class in image.classes.iter().copied().collect::<BTreeSet<_>>() {
            let entry = found.entry(class).or_default();
            entry.0 += 1;
            entry.1.insert(side);
        }
    }
    let alone =
        |(class, (images, sides)): (i64, (usize, BTreeSet<Side>))| (images > 1 && sides.len() == 1).then_some(class);
    found.into_iter().filter_map(alone).collect()
}

/// Images with equal bytes.
#[derive(Debug, Default)]
struct Group {
    members: Vec<usize>,
    classes: BTreeSet<i64>,
}

/// What a side still wants of a class, in groups.
type Wants = BTreeMap<i64, [f64; 2]>;

fn stratify(groups: &[Group], share: f64) -> Vec<Side> {
    let mut of_class: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate() {
        for &class in &group.classes {
            of_class.entry(class).or_default().push(index);
        }
    }
    let mut wants: Wants = of_class
        .iter()
        .map(|(&class, list)| {
            let count = list.len() as f64;
            let mut eval = count * share;
            if list.len() > 1 && share > 0.0 && share < 1.0 {
                eval = eval.clamp(1.0, count - 1.0);
            }
            (class, [count - eval, eval])
        })
        .collect();
    let mut total = [groups.len() as f64 * (1.0 - share), groups.len() as f64 * share];
    let mut sides: Vec<Option<Side>> = vec![None; groups.len()];
    let mut left: BTreeMap<i64, usize> = of_class.iter().map(|(&class, list)| (class, list.len())).collect();
    // The class with the fewest images that have no side yet.
    while let Some((&class, _)) = left
        .iter()
        .filter(|(_, count)| **count > 0)
        .min_by_key(|(_, count)| **count)
    {
        for &index in &of_class[&class] {
            if sides[index].is_some() {
                continue;
            }
            let [train, eval] = wants.get(&class).copied().unwrap_or_default();
            let side = match eval.total_cmp(&train) {
                std::cmp::Ordering::Greater => Side::Eval,
                std::cmp::Ordering::Less => Side::Train,
                std::cmp::Ordering::Equal if total[1] > total[0] => Side::Eval,
                std::cmp::Ordering::Equal => Side::Train,
            };
            sides[index] = Some(side);
            total[side as usize] -= 1.0;
            for member in &groups[index].classes {
                if let Some(want) = wants.get_mut(member) {
                    want[side as usize] -= 1.0;
                }
                if let Some(count) = left.get_mut(member) {
                    *count -= 1;
                }
            }
        }
        left.remove(&class);
    }
    sides.into_iter().map(|side| side.unwrap_or(Side::Train)).collect()
}

/// Moves images to a side that lacks one of their classes, as long as that takes no other class from the side they leave.
fn mend(groups: &[Group], sides: &mut [Side]) {
    let mut counts: BTreeMap<i64, [usize; 2]> = BTreeMap::new();
    for (group, side) in groups.iter().zip(sides.iter()) {
        for &class in &group.classes {
            counts.entry(class).or_default()[*side as usize] += 1;
        }
    }
    let classes: Vec<i64> = counts.keys().copied().filter(|&class| class != BACKGROUND).collect();
    // Each move puts a class where it was not and takes none away, so this ends; a move may make room for another.
    while classes.iter().any(|&class| mend_one(groups, sides, &mut counts, class)) {}
}

/// Moves an image to the side that lacks its `class`; says whether there was one.
fn mend_one(groups: &[Group], sides: &mut [Side], counts: &mut BTreeMap<i64, [usize; 2]>, class: i64) -> bool {
    for lacking in [Side::Train, Side::Eval] {
        let count = counts.get(&class).copied().unwrap_or_default();
        let from = lacking.other();
        if count[lacking as usize] > 0 || count[from as usize] < 2 {
            continue;
        }
        let movable = |index: &usize| {
            let group: &Group = &groups[*index];
            sides[*index] == from
                && group.classes.contains(&class)
                && group.classes.iter().all(|class| counts[class][from as usize] > 1)
        };
        if let Some(index) = (0..groups.len()).find(movable) {
            sides[index] = lacking;
            for class in &groups[index].classes {
                if let Some(count) = counts.get_mut(class) {
                    count[from as usize] -= 1;
                    count[lacking as usize] += 1;
                }
            }
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn images(classes: &[&[i64]]) -> Vec<Image> {
        classes
            .iter()
            .enumerate()
            .map(|(index, classes)| Image {
                classes: classes.to_vec(),
                digest: index.to_le_bytes().to_vec(),
            })
            .collect()
    }

    #[test]
    fn a_rare_class_is_on_both_sides_at_any_seed() {
        let mut classes: Vec<&[i64]> = vec![&[1]; 98];
        classes.extend([&[1, 2][..], &[2]]);
        let images = images(&classes);
        for seed in 0..50 {
            let sides = assign(&images, 0.2, seed);
            assert!(one_sided(&images, &sides).is_empty(), "seed {seed}");
            let eval = sides.iter().filter(|side| **side == Side::Eval).count();
            assert!((19..=21).contains(&eval), "seed {seed}: {eval} of 100");
        }
    }

    #[test]
    fn equal_images_stay_together_and_seeds_differ() {
        let mut images = images(&[&[1][..]; 40]);
        for pair in images.chunks_mut(2) {
            pair[1].digest = pair[0].digest.clone();
        }
        let sides = assign(&images, 0.25, 3);
        assert!(sides.chunks(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(sides, assign(&images, 0.25, 3));
        assert_ne!(sides, assign(&images, 0.25, 4));
        assert_eq!(sides.iter().filter(|side| **side == Side::Eval).count(), 10);
    }

    proptest! {
        #[test]
        fn the_share_holds_and_no_class_is_lost(
            classes in prop::collection::vec(prop::collection::vec(0_i64..6, 0..4), 2..80),
            share in 0.1_f64..0.5,
            seed: u64,
        ) {
            let lists: Vec<&[i64]> = classes.iter().map(Vec::as_slice).collect();
            let images = images(&lists);
            let sides = assign(&images, share, seed);
            let eval = sides.iter().filter(|side| **side == Side::Eval).count() as f64;
            // Each of the seven may ask for one image more than its share, and one may move.
            prop_assert!((eval - share * images.len() as f64).abs() <= 14.0, "{} of {}", eval, images.len());
            for class in one_sided(&images, &sides) {
                // No image of it could move without taking another class along.
                let side = sides[images.iter().position(|image| image.classes.contains(&class)).unwrap()];
                for (image, _) in images.iter().zip(&sides).filter(|(image, _)| image.classes.contains(&class)) {
                    let last = image.classes.iter().any(|other| {
                        images.iter().zip(&sides).filter(|(image, found)| **found == side && image.classes.contains(other)).count() == 1
                    });
                    prop_assert!(last, "class {}", class);
                }
            }
        }
    }
}
