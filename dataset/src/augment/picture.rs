//! An image on its way through the steps: a part of a stored file as long as possible, then floats.

use crate::decode::{self, Image};
use crate::pixels::Pixels;
use crate::resize::View;

/// Where the pixels of a stored image come from, once a step asks for them.
pub trait Stored {
    /// What `view` shows, with all channels, mirrored as it says.
    fn pixels(&mut self, view: View) -> Result<Pixels, decode::Error>;
}

impl Stored for Image {
    fn pixels(&mut self, view: View) -> Result<Pixels, decode::Error> {
        let mut pixels = Pixels::from(&*self);
        pixels.show(view);
        Ok(pixels)
    }
}

impl Pixels {
    /// Keeps what `view` shows.
    pub(crate) fn show(&mut self, view: View) {
        self.crop(view.top, view.left, view.height, view.width);
        if view.mirrored {
            self.flip_left_right();
        }
    }
}

/// An image on its way through the steps.
pub struct Picture<'a> {
    stored: &'a mut dyn Stored,
    state: Finished,
}

/// What the steps have made of an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Finished {
    /// A part of the stored image, perhaps mirrored; its pixels as they are.
    View(View),
    /// Something else.
    Pixels(Pixels),
}

impl std::fmt::Debug for Picture<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picture")
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl<'a> Picture<'a> {
    /// All of a stored image of `height` x `width`.
    pub fn new(height: usize, width: usize, stored: &'a mut dyn Stored) -> Self {
        Self {
            stored,
            state: Finished::View(View::whole(height, width)),
        }
    }

    /// Rows and columns as they are now.
    pub fn size(&self) -> (usize, usize) {
        match &self.state {
            Finished::View(view) => (view.height, view.width),
            Finished::Pixels(pixels) => (pixels.height, pixels.width),
        }
    }

    /// The pixels, to be changed at will.
    pub fn pixels(&mut self) -> Result<&mut Pixels, decode::Error> {
        if let Finished::View(view) = self.state {
            self.state = Finished::Pixels(self.stored.pixels(view)?);
        }
        match &mut self.state {
            Finished::Pixels(pixels) => Ok(pixels),
            Finished::View(_) => Err(decode::Error::Damaged {
                format: "image",
                reason: "its pixels were not made".to_owned(),
            }),
        }
    }

    /// Keeps a window, clamped to the picture.
    pub fn crop(&mut self, top: usize, left: usize, height: usize, width: usize) {
        match &mut self.state {
            Finished::View(view) => *view = view.crop(top, left, height, width),
            Finished::Pixels(pixels) => pixels.crop(top, left, height, width),
        }
    }

    /// Exchanges left and right.
    pub fn flip_left_right(&mut self) {
        match &mut self.state {
            Finished::View(view) => *view = view.flip(),
            Finished::Pixels(pixels) => pixels.flip_left_right(),
        }
    }

    /// What there is to be resized.
    pub fn finish(self) -> Finished {
        self.state
    }
}
