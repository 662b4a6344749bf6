//! The shape of a log line.
//!
//! As `tracing_subscriber` has them, but for one thing: what is logged within a span of the target
//! [`MARKS`](crate::trace::MARKS) has that span's fields among its own, at the same level, so that every line of an
//! attempt can be found by its job. A line's own field wins over a mark of that name.

use std::fmt::{self, Debug, Display};

use serde::ser::{SerializeMap, Serializer};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::{JsonFields, Writer},
        time::{FormatTime, SystemTime},
    },
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use crate::trace::MARKS;

/// The fields of a span of [`MARKS`].
#[derive(Debug, Default)]
struct Marks(Vec<(&'static str, Mark)>);

#[derive(Debug)]
enum Mark {
    Text(String),
    Number(u64),
}

impl Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => Display::fmt(number, f),
        }
    }
}

impl Visit for Marks {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), Mark::Number(value)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), Mark::Text(value.to_owned())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), Mark::Text(format!("{value:?}"))));
    }
}

impl Marks {
    /// Those that an event does not say itself.
    fn beside<'a>(&'a self, event: &Event<'_>) -> impl Iterator<Item = &'a (&'static str, Mark)> {
        let own = event.metadata().fields();
        self.0.iter().filter(move |(name, _)| own.field(name).is_none())
    }
}

/// Keeps the marks; for spans of [`MARKS`] alone.
pub(super) struct Marking;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Marking {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut marks = Marks::default();
        attributes.record(&mut marks);
        span.extensions_mut().insert(marks);
    }
}

fn is_marking<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>) -> bool {
    span.metadata().target() == MARKS
}

/// Does `with` with the marks around an event, if there are any.
fn with_marks<S, N, T>(context: &FmtContext<'_, S, N>, with: impl FnOnce(Option<&Marks>) -> T) -> T
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    match context.event_scope().and_then(|mut scope| scope.find(is_marking)) {
        Some(span) => with(span.extensions().get()),
        None => with(None),
    }
}

/// For people.
pub(super) struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (dim, plain) = if writer.has_ansi_escapes() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let level = *event.metadata().level();
        let colour = match level {
            _ if dim.is_empty() => "",
            Level::ERROR => "\x1b[31m",
            Level::WARN => "\x1b[33m",
            Level::INFO => "\x1b[32m",
            Level::DEBUG => "\x1b[34m",
            Level::TRACE => "\x1b[35m",
        };
        writer.write_str(dim)?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "{plain} {colour}{level:>5}{plain} ")?;
        let scope = context.event_scope().into_iter().flat_map(|scope| scope.from_root());
        for span in scope.filter(|span| !is_marking(span)) {
            writer.write_str(span.name())?;
            if let Some(fields) =
                span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty())
            {
                write!(writer, "{{{fields}}}")?;
            }
            writer.write_char(':')?;
        }
        write!(writer, "{dim}{}:{plain} ", event.metadata().target())?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        with_marks(context, |marks| {
            let mut beside = marks.into_iter().flat_map(|marks| marks.beside(event));
            beside.try_for_each(|(name, mark)| write!(writer, " {dim}{name}={plain}{mark}"))
        })?;
        writeln!(writer)
    }
}

/// For machines: one JSON object a line.
pub(super) struct Json;

impl<S> FormatEvent<S, JsonFields> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = line(context, event).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

fn line<S>(context: &FmtContext<'_, S, JsonFields>, event: &Event<'_>) -> serde_json::Result<String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let mut time = String::new();
    // A clock that cannot be read is no reason to lose the line.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let mut bytes = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &time)?;
    map.serialize_entry("level", event.metadata().level().as_str())?;
    let mut members = Members { map: &mut map, result: Ok(()) };
    event.record(&mut members);
    members.result?;
    with_marks(context, |marks| {
        let mut beside = marks.into_iter().flat_map(|marks| marks.beside(event));
        beside.try_for_each(|(name, mark)| match mark {
            Mark::Text(text) => map.serialize_entry(name, text),
            Mark::Number(number) => map.serialize_entry(name, number),
        })
    })?;
    map.serialize_entry("target", event.metadata().target())?;
    let innermost = context.event_scope().and_then(|mut scope| scope.find(|span| !is_marking(span)));
    if let Some(span) = innermost {
        map.serialize_entry("span", &described(&span))?;
    }
    SerializeMap::end(map)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A program's own span: its fields, and its name.
fn described<'a, R: LookupSpan<'a>>(span: &SpanRef<'a, R>) -> serde_json::Map<String, serde_json::Value> {
    let extensions = span.extensions();
    let fields = extensions.get::<FormattedFields<JsonFields>>();
    let mut fields: serde_json::Map<_, _> =
        fields.and_then(|fields| serde_json::from_str(fields).ok()).unwrap_or_default();
    fields.insert("name".to_owned(), span.name().into());
    fields
}

/// Writes an event's fields as members of an object.
struct Members<'a, M: SerializeMap> {
    map: &'a mut M,
    result: Result<(), M::Error>,
}

impl<M: SerializeMap> Members<'_, M> {
    fn put(&mut self, field: &Field, value: &(impl serde::Serialize + ?Sized)) {
        if self.result.is_ok() {
            let name = field.name();
            self.result = self.map.serialize_entry(name.strip_prefix("r#").unwrap_or(name), value);
        }
    }
}

impl<M: SerializeMap> Visit for Members<'_, M> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, &format_args!("{value:?}"));
    }
}
