//! What all evaluators have in common.

use crate::error::Error;
use crate::sample::Sample;

/// A figure under the name that the reference's evaluator exports to TensorBoard. NaN where nothing could be measured, such as the AP of
/// a class without groundtruth; COCO's say -1 then.
pub type Metric = (String, f64);

/// A metric that is fed image by image (the reference's `DetectionEvaluator`).
///
/// [`Evaluation`](crate::set::Evaluation) checks each sample before it comes here: lists of equal length, finite boxes, classes of the
/// label map, one sample an image.
pub trait Evaluator: Send {
    /// Its name in `metrics_set`.
    fn name(&self) -> &'static str;

    /// Takes one image's groundtruth and detections.
    fn add(&mut self, sample: &Sample) -> Result<(), Error>;

    /// The figures over all images so far, the overall ones first.
    fn evaluate(&self) -> Result<Vec<Metric>, Error>;
}
