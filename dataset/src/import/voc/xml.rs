//! One Pascal VOC annotation file.

use std::path::Path;

use roxmltree::{Document, Node};

use super::super::{Error, text};

/// An image's annotation as written: pixels, nothing corrected yet.
#[derive(Debug, PartialEq)]
pub(in crate::import) struct Annotation {
    pub filename: Option<String>,
    /// `(width, height)` when the file says so.
    pub size: Option<(u32, u32)>,
    pub objects: Vec<Object>,
}

#[derive(Debug, PartialEq)]
pub(in crate::import) struct Object {
    /// Line of `<object>`, from 1.
    pub line: u32,
    pub name: String,
    /// `[ymin, xmin, ymax, xmax]`
    pub bounds: [f64; 4],
    pub difficult: bool,
    pub truncated: bool,
    pub view: String,
}

pub(in crate::import) fn read(path: &Path) -> Result<Annotation, Error> {
    parse(path, &text::read(path, text::MOST_OF_ONE_IMAGE)?)
}

pub(in crate::import) fn parse(path: &Path, text: &str) -> Result<Annotation, Error> {
    let wrong = |line: u32, what: String, hint: &str| Error::Annotation {
        path: path.to_owned(),
        line,
        what,
        hint: hint.to_owned(),
    };
    let text = text.trim_start_matches('\u{feff}');
    let document = Document::parse(text).map_err(|error| {
        if matches!(error, roxmltree::Error::DtdDetected) {
            let line = text.lines().position(|line| line.contains("<!DOCTYPE")).unwrap_or(0) + 1;
            return wrong(
                line as u32,
                "a document type (<!DOCTYPE …>) is refused: entities in it can grow without end or name other files"
                    .to_owned(),
                "annotation files need none: remove it",
            );
        }
        // The parser does not say where a file that is cut off ends.
        let cut = matches!(error, roxmltree::Error::UnexpectedEndOfStream);
        let line = if cut {
            text.lines().count() as u32
        } else {
            error.pos().row
        };
        wrong(
            line,
            format!("not well-formed XML: {error}"),
            "the file may be cut off: save it again in the labelling tool",
        )
    })?;
    let line = |node: Node| document.text_pos_at(node.range().start).row;
    let root = document.root_element();
    if root.tag_name().name() != "annotation" {
        return Err(wrong(
            line(root),
            format!("the root element is <{}>", root.tag_name().name()),
            "a Pascal VOC file starts with <annotation>",
        ));
    }
    let size = child(root, "size").and_then(|size| {
        let number = |name| {
            child_text(size, name)
                .and_then(|text| text.parse::<f64>().ok())
                .filter(|n| *n >= 1.0)
        };
        Some((number("width")? as u32, number("height")? as u32))
    });
    let mut objects = Vec::new();
    for node in root.children().filter(|node| node.has_tag_name("object")) {
        let at = line(node);
        let name = child_text(node, "name")
            .filter(|name| !name.is_empty())
            .ok_or_else(|| {
                wrong(
                    at,
                    "an <object> has no <name>".to_owned(),
                    "each object names its class as the label map spells it",
                )
            })?;
        let Some(bndbox) = child(node, "bndbox") else {
            return Err(wrong(
                at,
                format!("object `{name}` has no <bndbox>"),
                "each object has a box: xmin, ymin, xmax, ymax in pixels",
            ));
        };
        let coordinate = |which: &str| {
            let text = child_text(bndbox, which).unwrap_or_default();
            text.parse::<f64>()
                .ok()
                .filter(|value| value.is_finite())
                .ok_or_else(|| {
                    wrong(
                        line(bndbox),
                        format!("object `{name}`: <{which}> is `{text}`"),
                        "xmin, ymin, xmax and ymax are numbers, in pixels",
                    )
                })
        };
        let flag = |which: &str| child_text(node, which).is_some_and(|text| text.parse::<i64>().is_ok_and(|n| n != 0));
        objects.push(Object {
            line: at,
            bounds: [
                coordinate("ymin")?,
                coordinate("xmin")?,
                coordinate("ymax")?,
                coordinate("xmax")?,
            ],
            difficult: flag("difficult"),
            truncated: flag("truncated"),
            view: child_text(node, "pose").unwrap_or_default(),
            name,
        });
    }
    Ok(Annotation {
        filename: child_text(root, "filename"),
        size,
        objects,
    })
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn child_text(node: Node, name: &str) -> Option<String> {
    child(node, name)
        .and_then(|child| child.text())
        .map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("a.xml"), text).unwrap_err().to_string()
    }

    #[test]
    fn reads_an_object() {
        let text = "<annotation><filename>b.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>\
            <object><name>cell</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>\
            <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30.5</xmax><ymax>40</ymax></bndbox></object></annotation>";
        let annotation = parse(Path::new("a.xml"), text).unwrap();
        assert_eq!(annotation.size, Some((64, 48)));
        let [object] = annotation.objects.as_slice() else {
            panic!("{annotation:?}")
        };
        assert_eq!(object.bounds, [2.0, 1.0, 40.0, 30.5]);
        assert!(object.truncated && !object.difficult);
        assert_eq!(object.view, "Left");
    }

    #[test]
    fn errors_name_file_line_and_value() {
        let cut = error("<annotation>\n<object>\n<name>a</na");
        assert!(cut.starts_with("a.xml:3: not well-formed XML"), "{cut}");
        let word =
            error("<annotation>\n<object><name>a</name>\n<bndbox><xmin>two</xmin></bndbox></object></annotation>");
        assert!(word.starts_with("a.xml:3: object `a`: <ymin> is ``"), "{word}");
        let nameless = error("<annotation>\n<object><bndbox/></object></annotation>");
        assert!(nameless.starts_with("a.xml:2: an <object> has no <name>"), "{nameless}");
    }
}
