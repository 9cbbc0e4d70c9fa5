//! An evaluation as one HTML file that needs nothing else: styles are inline, pictures are base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ImageError;

use crate::draw::{jpeg, png};
use crate::plot;
use crate::review::{Curve, Review};

/// Rows of the table of classes that are shown at once; the others can be opened.
const CLASSES: usize = 30;
/// Pairs in the list of mistakes between classes.
const CONFUSED: usize = 10;

/// What the page says beside the review.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Its heading: the configuration's or the model's name.
    pub title: String,
    /// Facts about the run, `(what, value)`: checkpoint, step, images, seconds.
    pub facts: Vec<(String, String)>,
    /// Metrics by name, in the order in which they are shown; NaN where there is none.
    pub metrics: Vec<(String, f64)>,
    /// What the user should know: classes without groundtruth, records that were left out.
    pub notes: Vec<String>,
    /// The configuration as text.
    pub configuration: String,
}

/// A report and the plots in it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The page.
    pub html: String,
    /// Precision-recall curves, a PNG file's bytes.
    pub precision_recall: Vec<u8>,
    /// The confusion matrix, a PNG file's bytes.
    pub confusion_matrix: Vec<u8>,
}

/// Draws the plots and writes the page.
pub fn write(page: &Page, review: &Review) -> Result<Report, ImageError> {
    let curves = review.curves();
    let names: Vec<String> = curves.iter().map(|curve| curve.class.clone()).collect();
    let precision_recall = png(&plot::precision_recall(&curves))?;
    let confusion_matrix = png(&plot::confusion(&names, review.confusion()))?;
    let threshold = review.options().score_threshold;
    let mut body = format!("<h1>{}</h1>\n", escaped(&page.title));
    body += &table(
        "facts",
        &[],
        page.facts.iter().map(|(what, value)| vec![what.clone(), value.clone()]),
    );
    if !page.notes.is_empty() {
        let items: String = page
            .notes
            .iter()
            .map(|note| format!("<li>{}</li>\n", escaped(note)))
            .collect();
        body += &format!("<div class=\"notes\"><b>To know</b><ul>\n{items}</ul></div>\n");
    }
    body += &headline(&page.metrics);
    body += "<h2>Precision and recall</h2>\n<p>Of each class at IoU 0.50, over all score thresholds; the number is the area below the curve.</p>\n";
    body += &picture("png", &precision_recall, "precision-recall curves");
    body += &classes(&curves);
    body += &format!(
        "<h2>Confusion</h2>\n<p>Detections with a score of at least {threshold} against the objects that they overlap by at least 0.5. The last column counts objects that were missed, the last row detections where nothing is. Colours are shares of a row.</p>\n"
    );
    body += &picture("png", &confusion_matrix, "confusion matrix");
    body += &confused(&names, review);
    body += &worst(review);
    body += "<h2>All metrics</h2>\n";
    let metrics = page
        .metrics
        .iter()
        .map(|(name, value)| vec![name.clone(), figure(*value)]);
    body += &table("metrics", &["metric", "value"], metrics);
    body += &format!(
        "<h2>Configuration</h2>\n<details><summary>pipeline.config with every default filled in</summary><pre>{}</pre></details>\n",
        escaped(&page.configuration)
    );
    let html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{}</title>\n<style>{STYLE}</style></head>\n<body><main>\n{body}</main></body></html>\n",
        escaped(&page.title)
    );
    Ok(Report {
        html,
        precision_recall,
        confusion_matrix,
    })
}

/// A picture for the report: shrunk to at most `width` pixels, as the bytes of a JPEG file.
pub fn thumbnail(picture: &image::RgbImage, width: u32) -> Result<Vec<u8>, ImageError> {
    if picture.width() <= width {
        return jpeg(picture, 85);
    }
    let height = (u64::from(picture.height()) * u64::from(width) / u64::from(picture.width())).max(1) as u32;
    let small = image::imageops::resize(picture, width, height, image::imageops::FilterType::Triangle);
    jpeg(&small, 85)
}

const STYLE: &str = "
body{margin:0;background:#f4f5f7;color:#1c2330;font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 20px 60px;background:#fff}
h1{font-size:28px;margin:8px 0 16px;overflow-wrap:anywhere}h2{font-size:21px;margin:44px 0 8px;border-bottom:1px solid #dfe3ea;padding-bottom:4px}
p{max-width:75ch}table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:12px 0}
.wide{overflow-x:auto}th,td{text-align:left;padding:4px 18px 4px 0;border-bottom:1px solid #eceff3;white-space:nowrap}th{font-weight:600;color:#556}
table.facts td:last-child,table.metrics td:first-child{white-space:normal;overflow-wrap:anywhere}
table.classes td:not(:first-child),table.classes th:not(:first-child),table.metrics td:last-child{text-align:right}
table.facts td:first-child{color:#556}.cards{display:flex;flex-wrap:wrap;gap:12px;margin:24px 0}
.card{border:1px solid #dfe3ea;border-radius:8px;padding:10px 18px;min-width:120px}.card b{display:block;font-size:26px}.card span{color:#556;font-size:14px}
.notes{background:#fff7e0;border:1px solid #ecd9a0;border-radius:8px;padding:10px 18px;margin:16px 0;overflow-wrap:anywhere}.notes ul{margin:4px 0;padding-left:20px}
img{max-width:100%;height:auto}figure{margin:20px 0}figcaption{color:#445}
details summary{cursor:pointer;color:#2456a6}pre{background:#f4f5f7;padding:14px;border-radius:8px;overflow:auto;font-size:13px;line-height:1.4}
@media print{body{background:#fff}main{max-width:none}}";

/// The figures that people ask for first.
const HEADLINE: [(&str, &str); 8] = [
    ("DetectionBoxes_Precision/mAP", "mAP"),
    ("DetectionBoxes_Precision/mAP@.50IOU", "mAP at IoU .50"),
    ("DetectionBoxes_Precision/mAP@.75IOU", "mAP at IoU .75"),
    ("DetectionBoxes_Recall/AR@100", "AR with 100 detections"),
    ("PascalBoxes_Precision/mAP@0.5IOU", "Pascal VOC mAP"),
    ("OpenImagesV2_Precision/mAP@0.5IOU", "Open Images V2 mAP"),
    (
        "OpenImagesDetectionChallenge_Precision/mAP@0.5IOU",
        "Open Images challenge mAP",
    ),
    ("Loss/total_loss", "total loss"),
];

fn headline(metrics: &[(String, f64)]) -> String {
    let cards: String = HEADLINE
        .iter()
        .filter_map(|(name, shown)| {
            let (_, value) = metrics.iter().find(|(known, _)| known == name)?;
            Some(format!(
                "<div class=\"card\"><b>{}</b><span>{shown}</span></div>\n",
                figure(*value)
            ))
        })
        .collect();
    format!("<div class=\"cards\">\n{cards}</div>\n")
}

fn classes(curves: &[Curve]) -> String {
    let mut sorted: Vec<&Curve> = curves.iter().collect();
    // Best first; classes without objects last.
    sorted.sort_by(|a, b| {
        let value = |curve: &Curve| curve.average_precision.unwrap_or(-1.0);
        value(b).total_cmp(&value(a))
    });
    let rows: Vec<Vec<String>> = sorted
        .iter()
        .map(|curve| {
            let best = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            vec![
                curve.class.clone(),
                curve.objects.to_string(),
                curve.detections.to_string(),
                best(curve.average_precision),
                best(curve.best.map(|best| best.f1)),
                best(curve.best.map(|best| best.precision)),
                best(curve.best.map(|best| best.recall)),
                best(curve.best.map(|best| best.score)),
            ]
        })
        .collect();
    let head = [
        "class",
        "objects",
        "detections",
        "AP .50",
        "best F1",
        "precision there",
        "recall there",
        "score there",
    ];
    let shown = table("classes", &head, rows.iter().take(CLASSES).cloned());
    if rows.len() <= CLASSES {
        return shown;
    }
    let rest = table("classes", &head, rows.iter().skip(CLASSES).cloned());
    format!(
        "{shown}<details><summary>{} further classes</summary>{rest}</details>\n",
        rows.len() - CLASSES
    )
}

fn confused(names: &[String], review: &Review) -> String {
    let pairs = review.confusion().most_confused(CONFUSED);
    if pairs.is_empty() {
        return String::new();
    }
    let name = |index: usize| names.get(index).cloned().unwrap_or_default();
    let rows = pairs
        .into_iter()
        .map(|(actual, detected, count)| vec![name(actual), name(detected), count.to_string()]);
    table("confused", &["class", "taken for", "times"], rows)
}

fn worst(review: &Review) -> String {
    if review.worst().is_empty() {
        return String::new();
    }
    let mut text = format!(
        "<h2>Worst images</h2>\n<p>Those with the most mistakes at scores of at least {}: detections left, groundtruth right.</p>\n",
        review.options().score_threshold
    );
    for image in review.worst() {
        let caption = format!(
            "{}: {} missed, {} wrong, {} found",
            image.name, image.missed, image.wrong, image.found
        );
        text += "<figure>\n";
        if !image.picture.is_empty() {
            text += &picture("jpeg", &image.picture, &image.name);
        }
        text += &format!("<figcaption>{}</figcaption></figure>\n", escaped(&caption));
    }
    text
}

fn picture(kind: &str, bytes: &[u8], what: &str) -> String {
    format!(
        "<img alt=\"{}\" src=\"data:image/{kind};base64,{}\">\n",
        escaped(what),
        STANDARD.encode(bytes)
    )
}

fn table(class: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = format!("<div class=\"wide\"><table class=\"{class}\">\n");
    if !head.is_empty() {
        text += &line("th", head.iter().copied());
    }
    for row in rows {
        text += &line("td", row.iter().map(String::as_str));
    }
    text + "</table></div>\n"
}

/// A line of a table.
fn line<'a>(tag: &str, cells: impl Iterator<Item = &'a str>) -> String {
    let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
    format!("<tr>{cells}</tr>\n")
}

/// `-` for what cannot be measured: NaN, or COCO's -1.
fn figure(value: f64) -> String {
    if value.is_nan() || value == -1.0 {
        "-".to_owned()
    } else {
        format!("{value:.4}")
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::Options;
    use crate::sample::{Category, Sample};

    fn review() -> Review {
        let names = ["<b>bold</b>", "other"];
        let categories = names.iter().zip(1..).map(|(name, id)| Category {
            id,
            name: (*name).to_owned(),
        });
        let options = Options {
            worst_images: 3,
            ..Options::default()
        };
        let mut review = Review::new(categories.collect(), options);
        let mut sample = Sample::default();
        sample.groundtruth.boxes = vec![[0.0, 0.0, 5.0, 5.0]];
        sample.groundtruth.classes = vec![1];
        sample.detections.boxes = vec![[0.0, 0.0, 5.0, 5.0]];
        sample.detections.classes = vec![2];
        sample.detections.scores = vec![0.9];
        let shown = image::RgbImage::new(2000, 30);
        review.add(&sample, "a&b.jpg", &mut || thumbnail(&shown, 900).unwrap());
        review
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_says_everything() {
        let page = Page {
            title: "run <1>".into(),
            facts: vec![("checkpoint".into(), "model.ckpt-7".into())],
            metrics: vec![
                ("DetectionBoxes_Precision/mAP".into(), 0.25),
                ("DetectionBoxes_Precision/mAP (small)".into(), -1.0),
            ],
            notes: vec!["class \"other\" has no groundtruth".into()],
            configuration: "model {\n  ssd { }\n}".into(),
        };
        let report = write(&page, &review()).unwrap();
        for part in [
            "run &lt;1&gt;",
            "model.ckpt-7",
            "<b>0.2500</b><span>mAP</span>",
            "<td>DetectionBoxes_Precision/mAP (small)</td><td>-</td>",
            "class &quot;other&quot; has no groundtruth",
            "&lt;b&gt;bold&lt;/b&gt;</td><td>other</td><td>1</td>",
            "a&amp;b.jpg: 1 missed, 1 wrong, 0 found",
            "model {\n  ssd { }\n}",
        ] {
            assert!(report.html.contains(part), "{part} is not in\n{}", report.html);
        }
        let sources: Vec<&str> = report.html.split(" src=\"").skip(1).collect();
        assert_eq!(sources.len(), 3);
        assert!(sources.iter().all(|source| source.starts_with("data:image/")));
        for from in ["http://", "https://", "<script", "<link", "url(", "@import"] {
            assert!(!report.html.contains(from), "{from}");
        }
        let embedded = STANDARD.encode(&report.precision_recall);
        assert!(report.html.contains(&embedded));
        assert!(report.confusion_matrix.starts_with(b"\x89PNG"));
        let small = image::load_from_memory(&review().worst()[0].picture).unwrap();
        assert_eq!((small.width(), small.height()), (900, 13));
    }
}
