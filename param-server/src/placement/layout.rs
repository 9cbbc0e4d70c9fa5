use std::ops::Range;

use coati_common::variables::{VariableKind, VariableSpec};
use coati_proto::coati::v1;

use super::{Error, checked_elements};

/// A piece as one server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPiece {
    /// Index into [`Layout::variables`].
    pub variable: usize,
    /// First element within the variable.
    pub start: usize,
    /// Number of elements.
    pub length: usize,
    /// First element within the model's flat vector.
    pub flat: usize,
    /// First element within the server's arena.
    pub offset: usize,
}

/// A run of an arena whose elements are all updated alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// First element within the arena.
    pub offset: usize,
    /// Number of elements.
    pub length: usize,
    /// How they change.
    pub kind: VariableKind,
}

/// One server's part of a placement.
#[derive(Clone, Debug, Default)]
pub struct ServerLayout {
    /// In arena order.
    pub pieces: Vec<LocalPiece>,
    /// Pieces of equal kind joined, in arena order.
    pub segments: Vec<Segment>,
    /// Elements of the arena.
    pub arena_len: usize,
    /// The first so many elements are pushed: all but a tail of constants.
    pub pushed_len: usize,
    /// The first so many elements have slots: up to the last trainable one.
    pub slotted_len: usize,
}

/// A placement, checked and made ready for copying.
#[derive(Clone, Debug)]
pub struct Layout {
    variables: Vec<VariableSpec>,
    servers: Vec<ServerLayout>,
    flat_len: usize,
    version: u64,
}

/// Far more than any model has; what lies beyond is a broken message, and must not be believed.
const MOST_SERVERS: u32 = 1 << 16;
const MOST_VARIABLES: usize = 1 << 18;
const MOST_PIECES: usize = 1 << 20;
const MOST_DIMENSIONS: usize = 16;
const LONGEST_NAME: usize = 1024;

/// Counts and names, before anything is allocated for them.
fn check_bounds(placement: &v1::Placement) -> Result<(), Error> {
    let inconsistent = |what: String| Err(Error::Inconsistent { what });
    if !(1..=MOST_SERVERS).contains(&placement.ps_count) {
        return inconsistent(format!("{} servers", placement.ps_count));
    }
    for (count, most, what) in [
        (placement.variables.len(), MOST_VARIABLES, "variables"),
        (placement.pieces.len(), MOST_PIECES, "pieces"),
    ] {
        if count > most {
            return inconsistent(format!("{count} {what}, at most {most} are possible"));
        }
    }
    let mut names = std::collections::HashSet::with_capacity(placement.variables.len());
    for (index, variable) in placement.variables.iter().enumerate() {
        let name = variable.name.as_str();
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            let shown: String = name.chars().take(40).collect();
            return inconsistent(format!(
                "variable {index} has name {shown:?} of {} bytes; possible are 1 to {LONGEST_NAME} bytes without control characters",
                name.len()
            ));
        }
        if !names.insert(name) {
            return Err(Error::Duplicate { name: name.to_owned() });
        }
        if variable.shape.len() > MOST_DIMENSIONS {
            return inconsistent(format!("variable `{name}` has {} dimensions", variable.shape.len()));
        }
    }
    Ok(())
}

impl Layout {
    /// Checks that names and counts are possible, that each element of each variable is on exactly one server and that arenas have no gaps.
    pub fn new(placement: &v1::Placement) -> Result<Self, Error> {
        let inconsistent = |what: String| Error::Inconsistent { what };
        check_bounds(placement)?;
        let variables: Vec<VariableSpec> = placement.variables.iter().map(Into::into).collect();
        let mut flat_len = 0usize;
        let mut sizes = Vec::with_capacity(variables.len());
        for spec in &variables {
            let elements = checked_elements(spec)?;
            sizes.push((flat_len, elements));
            flat_len = flat_len
                .checked_add(elements)
                .ok_or_else(|| inconsistent("too many elements".into()))?;
        }
        let mut servers = vec![ServerLayout::default(); placement.ps_count as usize];
        let mut covered: Vec<(usize, usize)> = Vec::with_capacity(placement.pieces.len());
        for piece in &placement.pieces {
            let variable = piece.variable as usize;
            let at = || {
                format!(
                    "piece {}+{} of variable {variable} on ps-{}",
                    piece.start, piece.length, piece.ps
                )
            };
            let &(flat, elements) = sizes
                .get(variable)
                .ok_or_else(|| inconsistent(format!("{}: no such variable", at())))?;
            let server = servers
                .get_mut(piece.ps as usize)
                .ok_or_else(|| inconsistent(format!("{}: no such server", at())))?;
            let end = piece
                .start
                .checked_add(piece.length)
                .filter(|&end| end <= elements as u64 && piece.length > 0);
            if end.is_none() {
                return Err(inconsistent(format!("{}: the variable has {elements} elements", at())));
            }
            if piece.offset != server.arena_len as u64 {
                let expected = server.arena_len;
                return Err(inconsistent(format!(
                    "{}: offset {} where {expected} is next",
                    at(),
                    piece.offset
                )));
            }
            let (start, length) = (piece.start as usize, piece.length as usize);
            if server.arena_len.checked_add(length).is_none() {
                return Err(inconsistent(format!("{}: too many elements", at())));
            }
            covered.push((flat + start, length));
            server.push(
                LocalPiece {
                    variable,
                    start,
                    length,
                    flat: flat + start,
                    offset: server.arena_len,
                },
                &variables,
            );
        }
        covered.sort_unstable();
        let mut next = 0;
        for (start, length) in covered {
            if start != next {
                let what = if start > next {
                    "held by no server"
                } else {
                    "held twice"
                };
                return Err(inconsistent(format!("element {} is {what}", start.min(next))));
            }
            next = start + length;
        }
        if next != flat_len {
            return Err(inconsistent(format!(
                "element {next} of {flat_len} is held by no server"
            )));
        }
        Ok(Self {
            variables,
            servers,
            flat_len,
            version: placement.version,
        })
    }

    /// In their declared order.
    pub fn variables(&self) -> &[VariableSpec] {
        &self.variables
    }

    /// By server index.
    pub fn servers(&self) -> &[ServerLayout] {
        &self.servers
    }

    /// One server's part; nothing where there is no such server.
    pub fn server(&self, ps: u32) -> Option<&ServerLayout> {
        self.servers.get(ps as usize)
    }

    /// Elements of the model's flat vector.
    pub fn flat_len(&self) -> usize {
        self.flat_len
    }

    /// The placement's version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Elements of a server's arena; 0 where there is no such server.
    pub fn arena_len(&self, ps: u32) -> usize {
        self.server(ps).map_or(0, |server| server.arena_len)
    }

    /// Copies a server's part of the flat vector `[flat_len]` into `out`, which becomes `[arena_len]`.
    pub fn gather(&self, ps: u32, flat: &[f32], out: &mut Vec<f32>) {
        out.clear();
        if let Some(server) = self.server(ps) {
            server.gather(0, server.arena_len, flat, out);
        }
    }

    /// Copies a server's arena `[arena_len]` to its places in the flat vector `[flat_len]`.
    pub fn scatter(&self, ps: u32, arena: &[f32], flat: &mut [f32]) {
        if let Some(server) = self.server(ps) {
            server.scatter(0, bytemuck::cast_slice(arena), flat);
        }
    }

    /// The flat vector `[flat_len]` cut into each server's pieces, in arena order: so that several servers' values can
    /// be written to it at the same time. Nothing if the vector has another length.
    pub fn split_mut<'a>(&self, flat: &'a mut [f32]) -> Option<Vec<Vec<&'a mut [f32]>>> {
        if flat.len() != self.flat_len {
            return None;
        }
        let mut order: Vec<(usize, usize, usize, usize)> = self
            .servers
            .iter()
            .enumerate()
            .flat_map(|(ps, server)| {
                server
                    .pieces
                    .iter()
                    .enumerate()
                    .map(move |(index, piece)| (piece.flat, piece.length, ps, index))
            })
            .collect();
        order.sort_unstable();
        let mut cut: Vec<Vec<&mut [f32]>> = self
            .servers
            .iter()
            .map(|server| {
                std::iter::repeat_with(<&mut [f32]>::default)
                    .take(server.pieces.len())
                    .collect()
            })
            .collect();
        let mut rest = flat;
        for (_, length, ps, index) in order {
            let (piece, later) = rest.split_at_mut_checked(length)?;
            cut[ps][index] = piece;
            rest = later;
        }
        Some(cut)
    }

    /// The variable that an element of a server's arena belongs to.
    pub fn variable_at(&self, ps: u32, offset: usize) -> Option<&VariableSpec> {
        let server = self.server(ps)?;
        server
            .pieces
            .get(server.piece_at(offset))
            .map(|piece| &self.variables[piece.variable])
    }
}

impl ServerLayout {
    fn push(&mut self, piece: LocalPiece, variables: &[VariableSpec]) {
        let kind = variables[piece.variable].kind;
        self.arena_len += piece.length;
        if kind != VariableKind::Constant {
            self.pushed_len = self.arena_len;
        }
        if kind == VariableKind::Trainable {
            self.slotted_len = self.arena_len;
        }
        match self.segments.last_mut() {
            Some(last) if last.kind == kind => last.length += piece.length,
            _ => self.segments.push(Segment {
                offset: piece.offset,
                length: piece.length,
                kind,
            }),
        }
        self.pieces.push(piece);
    }

    /// Index of the piece that holds an arena element.
    fn piece_at(&self, offset: usize) -> usize {
        self.pieces
            .partition_point(|piece| piece.offset + piece.length <= offset)
    }

    /// Where elements of the arena are in the flat vector, in the arena's order.
    pub fn places(&self, elements: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        self.pieces[self.piece_at(elements.start)..]
            .iter()
            .map_while(move |piece| {
                let first = piece.offset.max(elements.start);
                let last = (piece.offset + piece.length).min(elements.end);
                let source = piece.flat + (first - piece.offset);
                (first < last).then(|| source..source + (last - first))
            })
    }

    /// Appends elements `from .. to` of the arena, taken from the flat vector.
    pub fn gather(&self, from: usize, to: usize, flat: &[f32], out: &mut Vec<f32>) {
        for place in self.places(from..to) {
            out.extend_from_slice(&flat[place]);
        }
    }

    /// Copies float32 bytes (this machine's order, any alignment) that begin at arena element `from` to their places
    /// in the flat vector. What reaches beyond the arena is left out.
    pub fn scatter(&self, from: usize, mut bytes: &[u8], flat: &mut [f32]) {
        let mut at = from;
        for piece in &self.pieces[self.piece_at(from)..] {
            if bytes.is_empty() {
                break;
            }
            let skipped = at - piece.offset;
            let count = (piece.length - skipped).min(bytes.len() / 4);
            let (now, later) = bytes.split_at(count * 4);
            let target = piece.flat + skipped;
            bytemuck::cast_slice_mut::<f32, u8>(&mut flat[target..target + count]).copy_from_slice(now);
            bytes = later;
            at += count;
        }
    }
}
