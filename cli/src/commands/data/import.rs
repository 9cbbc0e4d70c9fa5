//! `coati data import FORMAT`: the flags of the reference's `create_*_tf_record` scripts.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

mod report;

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};
use coati_common::label_map::LabelMap;
use coati_dataset::import::{Output, Report, coco, csv, folder, kitti, masks, oid, pets, picture, voc};

use crate::args::Format;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Pascal VOC XML: VOC2007/2012, or as LabelImg and VoTT leave it.
    Voc(Voc),
    /// Oxford-IIIT pets: faces, or whole bodies with masks.
    Pets(Pets),
    /// COCO JSON: boxes, masks, crowds, areas, captions.
    Coco(Coco),
    /// Open Images: boxes, image-level labels, group-of and other flags.
    Oid(Oid),
    /// KITTI's object detection set.
    Kitti(Kitti),
    /// A table: filename,width,height,class,xmin,ymin,xmax,ymax.
    Csv(Csv),
    /// One folder a class with a folder Label in it, as OIDv4_ToolKit leaves them.
    Folder(Folder),
}

/// What every format has.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Common {
    /// Number of shards: OUTPUT-00000-of-00010 and so on; 0 for one file without a number. Without the flag as many as the
    /// reference's script makes: pets 10, oid 100, coco 100 to train on and 50 else with --train_image_dir, 32 with
    /// --output_file_prefix; otherwise one file.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    num_shards: Option<u32>,
    /// Unusable images beyond this are an error.
    #[arg(long, default_value_t = 20)]
    max_skipped: usize,
    /// Seed of the records' order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Copy images as they are, or write all of them anew.
    #[arg(long, value_enum, default_value_t = ImageFormat::Unchanged)]
    images: ImageFormat,
    /// With --images=jpeg: 1 to 100.
    #[arg(long, default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    jpeg_quality: u8,
    /// Decode every image, instead of only looking whether the files are whole.
    #[arg(long)]
    decode_images: bool,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImageFormat {
    Unchanged,
    Jpeg,
    Png,
}

impl Common {
    /// `usual` is the number of shards unless a flag says another one; 0: no shards.
    fn output(&self, path: impl Into<PathBuf>, usual: u32) -> Output {
        let shards = self.num_shards.unwrap_or(usual);
        Output {
            path: path.into(),
            num_shards: (shards > 0).then_some(shards),
            ending: "",
            seed: self.seed,
            images: match self.images {
                ImageFormat::Unchanged => picture::Images::Unchanged {
                    decode: self.decode_images,
                },
                ImageFormat::Jpeg => picture::Images::Jpeg {
                    quality: self.jpeg_quality,
                },
                ImageFormat::Png => picture::Images::Png,
            },
            max_skipped: self.max_skipped,
        }
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Voc {
    /// Folder with Annotations and JPEGImages, or with images and XML files side by side.
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// Label map (.pbtxt).
    #[arg(long, value_name = "FILE")]
    label_map_path: PathBuf,
    /// TFRecord to write; with --num_shards the start of the shards' names.
    #[arg(long, value_name = "FILE")]
    output_path: PathBuf,
    /// List in ImageSets/Main: train, val, trainval, test; everything without it.
    #[arg(long)]
    set: Option<String>,
    /// Subfolder of --data_dir: VOC2007, VOC2012, or merged for both.
    #[arg(long)]
    year: Option<String>,
    /// Name of the annotations' folder, when it is not a usual one.
    #[arg(long)]
    annotations_dir: Option<String>,
    /// Leave out objects marked difficult.
    #[arg(long)]
    ignore_difficult_instances: bool,
    #[command(flatten)]
    common: Common,
}

/// How masks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MaskType {
    /// A PNG an object (PNG_MASKS).
    Png,
    /// Numbers (NUMERICAL_MASKS); large.
    Numerical,
    /// COCO's compressed run lengths; small, for tools of your own.
    Rle,
}

impl From<MaskType> for masks::MaskType {
    fn from(kind: MaskType) -> Self {
        match kind {
            MaskType::Png => Self::Png,
            MaskType::Numerical => Self::Numerical,
            MaskType::Rle => Self::Rle,
        }
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Pets {
    /// Folder with images and annotations.
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// Folder to write pet_faces_train.record, pet_faces_val.record (or pets_fullbody_with_masks_…) to.
    #[arg(long, value_name = "FOLDER")]
    output_dir: PathBuf,
    /// Label map (.pbtxt).
    #[arg(long, value_name = "FILE")]
    label_map_path: PathBuf,
    /// Boxes of faces; with --faces_only=false of whole bodies, with masks.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    faces_only: bool,
    #[arg(long, value_enum, default_value_t = MaskType::Png)]
    mask_type: MaskType,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Coco {
    /// Folder of the images.
    #[arg(long, value_name = "FOLDER", required_unless_present = "train_image_dir")]
    image_dir: Option<PathBuf>,
    /// JSON whose images are imported; otherwise those of the objects or captions.
    #[arg(long, value_name = "FILE")]
    image_info_file: Option<PathBuf>,
    /// JSON with boxes and masks.
    #[arg(long, value_name = "FILE")]
    object_annotations_file: Option<PathBuf>,
    /// JSON with captions.
    #[arg(long, value_name = "FILE")]
    caption_annotations_file: Option<PathBuf>,
    /// TFRecord to write; with --num_shards the start of the shards' names.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["output_dir", "output_file_prefix"])]
    output_path: Option<PathBuf>,
    /// The same as the reference's script names them: PREFIX-00000-of-00032.tfrecord.
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["output_path", "output_dir"])]
    output_file_prefix: Option<PathBuf>,
    /// Write masks, too.
    #[arg(long)]
    include_masks: bool,
    #[arg(long, value_enum, default_value_t = MaskType::Png)]
    mask_type: MaskType,
    /// All sets at once, as the reference's older script: the folder of the images to train on.
    #[arg(long, value_name = "FOLDER", requires_all = ["train_annotations_file", "output_dir"], conflicts_with = "image_dir")]
    train_image_dir: Option<PathBuf>,
    /// … the folder of the images to validate on.
    #[arg(long, value_name = "FOLDER", requires_all = ["val_annotations_file", "train_image_dir"])]
    val_image_dir: Option<PathBuf>,
    /// … the folder of the images to test on.
    #[arg(long, value_name = "FOLDER", requires_all = ["testdev_annotations_file", "train_image_dir"])]
    test_image_dir: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    train_annotations_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    val_annotations_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    testdev_annotations_file: Option<PathBuf>,
    /// … where coco_train.record, coco_val.record and coco_testdev.record go.
    #[arg(long, value_name = "FOLDER", requires = "train_image_dir")]
    output_dir: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Oid {
    /// Table of boxes.
    #[arg(long, alias = "input_annotations_csv", value_name = "FILE")]
    input_box_annotations_csv: PathBuf,
    /// Table of verified image-level labels.
    #[arg(long, value_name = "FILE")]
    input_image_label_annotations_csv: Option<PathBuf>,
    /// Folder of the images, called <ImageID>.jpg.
    #[arg(long, value_name = "FOLDER")]
    input_images_directory: PathBuf,
    /// Label map (.pbtxt) of the labels' codes (/m/01g317).
    #[arg(long, alias = "label_map_path", value_name = "FILE")]
    input_label_map: PathBuf,
    /// TFRecord to write; with --num_shards the start of the shards' names.
    #[arg(long, alias = "output_path", value_name = "FILE")]
    output_tf_record_path_prefix: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Kitti {
    /// Folder with training/label_2 and data_object_image_2/training/image_2 (or training/image_2).
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// Start of the names: <output_path>_train.tfrecord and <output_path>_val.tfrecord.
    #[arg(long, value_name = "FILE")]
    output_path: PathBuf,
    /// Types to keep; with dontcare, boxes that meet such a region go.
    #[arg(long, value_delimiter = ',', default_value = "car,pedestrian,dontcare")]
    classes_to_use: Vec<String>,
    /// Label map (.pbtxt).
    #[arg(long, value_name = "FILE")]
    label_map_path: PathBuf,
    /// Images numbered below this are for validation.
    #[arg(long, default_value_t = 500)]
    validation_set_size: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Csv {
    /// The table: a line a box.
    #[arg(long, value_name = "FILE")]
    csv_input: PathBuf,
    /// Folder of the images.
    #[arg(long, value_name = "FOLDER")]
    image_dir: PathBuf,
    /// TFRecord to write; with --num_shards the start of the shards' names.
    #[arg(long, value_name = "FILE")]
    output_path: PathBuf,
    /// Label map (.pbtxt).
    #[arg(long, value_name = "FILE")]
    label_map_path: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Folder {
    /// Folder with one folder a class: OID/Dataset/train.
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// TFRecord to write; with --num_shards the start of the shards' names.
    #[arg(long, value_name = "FILE")]
    output_path: PathBuf,
    /// Label map (.pbtxt).
    #[arg(long, value_name = "FILE")]
    label_map_path: PathBuf,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Voc(args) => {
            let labels = LabelMap::load(&args.label_map_path)?;
            let options = voc::Options {
                output: args.common.output(&args.output_path, 0),
                data_dir: args.data_dir,
                year: args.year,
                set: args.set,
                annotations_dir: args.annotations_dir,
                ignore_difficult_instances: args.ignore_difficult_instances,
            };
            one(&args.common, &args.output_path, |progress| {
                voc::import(&options, &labels, progress)
            })
        }
        Command::Pets(args) => {
            let labels = LabelMap::load(&args.label_map_path)?;
            let options = pets::Options {
                output: args.common.output(&args.output_dir, 10),
                data_dir: args.data_dir,
                faces_only: args.faces_only,
                mask_type: args.mask_type.into(),
                train_share: 0.7,
            };
            let reports = report::with_bar(|progress| pets::import(&options, &labels, progress))?;
            report::sets(&reports, args.common.format)
        }
        Command::Coco(args) => coco_sets(args),
        Command::Oid(args) => {
            let labels = LabelMap::load(&args.input_label_map)?;
            let options = oid::Options {
                output: args.common.output(&args.output_tf_record_path_prefix, 100),
                box_annotations_csv: args.input_box_annotations_csv,
                image_label_annotations_csv: args.input_image_label_annotations_csv,
                images_directory: args.input_images_directory,
            };
            one(&args.common, &args.output_tf_record_path_prefix, |progress| {
                oid::import(&options, &labels, progress)
            })
        }
        Command::Kitti(args) => {
            let labels = LabelMap::load(&args.label_map_path)?;
            let options = kitti::Options {
                output: args.common.output(&args.output_path, 0),
                data_dir: args.data_dir,
                classes_to_use: args
                    .classes_to_use
                    .iter()
                    .map(|class| class.trim().to_lowercase())
                    .collect(),
                validation_set_size: args.validation_set_size,
            };
            let reports = report::with_bar(|progress| kitti::import(&options, &labels, progress))?;
            report::sets(&reports, args.common.format)
        }
        Command::Csv(args) => {
            let labels = LabelMap::load(&args.label_map_path)?;
            let options = csv::Options {
                output: args.common.output(&args.output_path, 0),
                csv_input: args.csv_input,
                image_dir: args.image_dir,
            };
            one(&args.common, &args.output_path, |progress| {
                csv::import(&options, &labels, progress)
            })
        }
        Command::Folder(args) => {
            let labels = LabelMap::load(&args.label_map_path)?;
            let options = folder::Options {
                output: args.common.output(&args.output_path, 0),
                data_dir: args.data_dir,
            };
            one(&args.common, &args.output_path, |progress| {
                folder::import(&options, &labels, progress)
            })
        }
    }
}

fn one(
    common: &Common,
    path: &std::path::Path,
    import: impl FnOnce(coati_dataset::import::Progress) -> Result<Report, coati_dataset::import::Error>,
) -> anyhow::Result<()> {
    let done = report::with_bar(import)?;
    report::one(&path.display().to_string(), &done, common.format)
}

fn coco_sets(args: Coco) -> anyhow::Result<()> {
    let masks = args.include_masks.then(|| args.mask_type.into());
    let output = match (args.output_path, args.output_file_prefix) {
        (Some(path), _) => Some(args.common.output(path, 0)),
        (None, Some(prefix)) => Some(Output {
            ending: ".tfrecord",
            ..args.common.output(prefix, 32)
        }),
        (None, None) => None,
    };
    if let (Some(image_dir), Some(output)) = (args.image_dir, output) {
        if args.image_info_file.is_none()
            && args.object_annotations_file.is_none()
            && args.caption_annotations_file.is_none()
        {
            return Err(Failure::user(
                "no annotations\nhint: --object_annotations_file names a file like instances_train2017.json",
            )
            .into());
        }
        let options = coco::Options {
            image_dir,
            image_info_file: args.image_info_file,
            object_annotations_file: args.object_annotations_file,
            caption_annotations_file: args.caption_annotations_file,
            masks,
            output,
        };
        let path = options.output.path.clone();
        return one(&args.common, &path, |progress| coco::import(&options, progress));
    }
    let output_dir = args.output_dir.unwrap_or_default();
    let mut reports = Vec::new();
    for (set, shards, images, annotations) in [
        ("train", 100, args.train_image_dir, args.train_annotations_file),
        ("val", 50, args.val_image_dir, args.val_annotations_file),
        ("testdev", 50, args.test_image_dir, args.testdev_annotations_file),
    ] {
        let (Some(image_dir), Some(annotations)) = (images, annotations) else {
            continue;
        };
        let options = coco::Options {
            image_dir,
            image_info_file: None,
            object_annotations_file: Some(annotations),
            caption_annotations_file: None,
            masks,
            output: args
                .common
                .output(output_dir.join(format!("coco_{set}.record")), shards),
        };
        let done = report::with_bar(|progress| coco::import(&options, progress))?;
        reports.push((set.to_owned(), done));
    }
    report::sets(&reports, args.common.format)
}
