//! Renders a conversation with the model's own chat template.
//!
//! Templates are Jinja as Hugging Face runs it; llama.cpp's C interface knows only a list of templates by heart and
//! no tools, so they are rendered here.

use super::tools;
use backplane_plugin::payload::chat::{Content, Message, Part, Tool, ToolChoice};
use backplane_plugin::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use serde::Serialize;
use serde_json::json;

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// Whether it writes tools in the format that [`tools::ToolParser`] reads.
    native_tools: bool,
}

/// What is rendered.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    pub messages: &'a [Message],
    pub tools: &'a [Tool],
    pub tool_choice: &'a ToolChoice,
    /// Seconds since the epoch, for templates that show the date.
    pub now: u64,
}

/// Instructions a template may run: enough for 100 000 messages, little enough to stop one that never ends.
const FUEL: u64 = 100_000_000;

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are the texts of those tokens, empty if the model has none.
    ///
    /// # Errors
    /// `model_invalid` with the line when it is no Jinja.
    pub fn new(source: String, bos: String, eos: String) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(invalid)?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        let native_tools = source.contains("tools")
            && source.contains(tools::OPEN)
            && source.contains("arguments")
            && !source.contains("<function=");
        environment.add_template_owned(NAME, source).map_err(invalid)?;
        Ok(Self { environment, bos, eos, native_tools })
    }

    /// The prompt text, ending where the assistant goes on.
    ///
    /// # Errors
    /// `InvalidArgument` with the template's own words when it refuses the conversation (roles must alternate, …).
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String> {
        let offers_tools = !conversation.tools.is_empty() && *conversation.tool_choice != ToolChoice::None;
        let mut messages = conversation
            .messages
            .iter()
            .enumerate()
            .map(|(i, message)| self.message(i, message))
            .collect::<Result<Vec<_>>>()?;
        if offers_tools && !self.native_tools {
            instruct(&mut messages, &tools::instruction(conversation.tools, conversation.tool_choice));
        }
        let tools: Option<Vec<_>> = (offers_tools && self.native_tools)
            .then(|| conversation.tools.iter().map(tools::declaration).collect());
        let now = conversation.now;
        let strftime_now = Value::from_function(move |format: String| strftime(now, &format));
        self.environment
            .get_template(NAME)
            .and_then(|template| {
                template.render(context! {
                    messages => Value::from(Serde(messages)),
                    tools => Value::from(Serde(tools)),
                    strftime_now,
                    add_generation_prompt => true,
                    bos_token => self.bos.as_str(),
                    eos_token => self.eos.as_str(),
                })
            })
            .map_err(|error| {
                Error::invalid(format!("the model's chat template refuses the messages: {}", words(&error)))
                    .with_param("messages")
            })
    }

    /// A message as templates expect it.
    fn message(&self, i: usize, message: &Message) -> Result<serde_json::Value> {
        let wrong = |what: String, path: &str| {
            Err(Error::invalid(format!("`messages[{i}]{path}` {what}"))
                .with_param(format!("messages[{i}]{path}")))
        };
        if message.role.is_empty() {
            return wrong("is empty: it says who speaks, such as `user`".into(), ".role");
        }
        let text = match &message.content {
            Content::Text(text) => text.clone(),
            Content::Absent => String::new(),
            Content::Parts(parts) => {
                let mut text = String::new();
                for (j, part) in parts.iter().enumerate() {
                    match part {
                        Part::Text { text: part } => text.push_str(part),
                        Part::Image { .. } => {
                            return wrong(
                                "is a picture, and this model reads only text".into(),
                                &format!(".content[{j}]"),
                            );
                        }
                    }
                }
                text
            }
        };
        if !self.native_tools {
            // The template knows neither calls nor their results: they become text in the same format.
            if message.role == "tool" {
                return Ok(
                    json!({"role": "user", "content": format!("<tool_response>\n{text}\n</tool_response>")}),
                );
            }
            if !message.tool_calls.is_empty() {
                let calls = tools::written(&message.tool_calls);
                let content = if text.is_empty() { calls } else { format!("{text}\n{calls}") };
                return Ok(json!({"role": message.role, "content": content}));
            }
        }
        let mut out = json!({"role": message.role, "content": text});
        if let Some(name) = &message.name {
            out["name"] = name.clone().into();
        }
        if let Some(id) = &message.tool_call_id {
            out["tool_call_id"] = id.clone().into();
        }
        if !message.tool_calls.is_empty() {
            let calls: Vec<_> = message
                .tool_calls
                .iter()
                .map(|call| {
                    let function = json!({"name": call.name, "arguments": tools::arguments(call)});
                    json!({"id": call.id, "type": "function", "function": function})
                })
                .collect();
            out["tool_calls"] = calls.into();
        }
        Ok(out)
    }
}

fn invalid(error: minijinja::Error) -> Error {
    Error::model_invalid(format!("the model's chat template is not valid: {error}"))
}

/// Adds an instruction to the system message, or makes one.
fn instruct(messages: &mut Vec<serde_json::Value>, instruction: &str) {
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let text = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{text}\n\n{instruction}").into();
        }
        _ => messages.insert(0, json!({"role": "system", "content": instruction})),
    }
}

/// An error's own message, without the template's file name and line, which mean nothing to a caller.
fn words(error: &minijinja::Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "it takes too long".into();
    }
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

/// Jinja's `tojson` as Hugging Face sets it up: Python's `json.dumps(…, ensure_ascii=False)`, not escaped for HTML.
fn to_json(value: &Value, kwargs: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    kwargs.get::<Option<bool>>("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(match indent {
        None => python_json(&value),
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let mut out = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            match value.serialize(&mut serializer) {
                Ok(()) => String::from_utf8_lossy(&out).into_owned(),
                Err(_) => value.to_string(),
            }
        }
    }))
}

/// JSON with Python's spaces: `{"a": 1, "b": [2, 3]}`. Models were trained on prompts written so.
pub fn python_json(value: &serde_json::Value) -> String {
    use serde_json::Value::{Array, Object};
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Object(members) => {
            let members = members.iter().map(|(key, value)| {
                format!("{}: {}", serde_json::Value::from(key.as_str()), python_json(value))
            });
            format!("{{{}}}", list(members.collect()))
        }
        Array(items) => format!("[{}]", list(items.iter().map(python_json).collect())),
        other => other.to_string(),
    }
}

/// The directives of `strftime` that templates use, in UTC; others stay as they are.
fn strftime(now: u64, format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (now / 86_400, now % 86_400);
    let (year, month, day) = date(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match chars.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    out
}

/// Year, month and day of a day since the epoch.
///
/// # Source
/// Howard Hinnant, `civil_from_days`, chrono-compatible low-level date algorithms.
fn date(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backplane_plugin::payload::chat::ToolCall;

    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ \
        '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif \
        %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if \
        add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    /// The part of Qwen2.5's template that matters here.
    const QWEN: &str = r##"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"##;

    fn render(source: &str, messages: &[Message], tools: &[Tool]) -> Result<String> {
        let template = ChatTemplate::new(source.into(), "<s>".into(), "</s>".into())?;
        let conversation =
            Conversation { messages, tools, tool_choice: &ToolChoice::Auto, now: 1_732_147_200 };
        template.render(&conversation)
    }

    fn says(role: &str, text: &str) -> Message {
        Message { role: role.into(), content: Content::Text(text.into()), ..Message::default() }
    }

    fn weather() -> Tool {
        Tool {
            name: "weather".into(),
            description: Some("what it's like <out>".into()),
            parameters: Some(json!({"type": "object", "properties": {"city": {"type": "string"}, "at": {}}})),
            ..Tool::default()
        }
    }

    #[test]
    fn a_conversation_is_rendered_as_the_model_was_trained() {
        assert_eq!(
            render(SMOLLM2, &[says("user", "Hi & bye")], &[]).unwrap(),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             <|im_start|>user\nHi & bye<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn tools_go_through_a_template_that_knows_them() {
        let calls = Message {
            role: "assistant".into(),
            tool_calls: vec![ToolCall {
                id: "1".into(),
                name: "weather".into(),
                arguments: "{\"city\":\"Paris\"}".into(),
            }],
            ..Message::default()
        };
        let text = render(QWEN, &[says("user", "Hi"), calls], &[weather()]).unwrap();
        assert!(text.contains(
            "\n{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"description\": \"what it's like <out>\", \
             \"parameters\": {\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}, \"at\": {}}}}}\n</tools>"
        ), "{text}");
        assert!(text.contains("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call><|im_end|>"), "{text}");
    }

    #[test]
    fn tools_are_explained_to_a_model_whose_template_does_not_know_them() {
        let text = render(
            SMOLLM2,
            &[says("system", "Be brief."), says("user", "Hi"), says("tool", "12 degrees")],
            &[weather()],
        )
        .unwrap();
        assert!(text.starts_with("<|im_start|>system\nBe brief.\n\n# Tools"), "{text}");
        assert!(text.contains("\"name\": \"weather\""));
        assert!(
            text.contains("<|im_start|>user\n<tool_response>\n12 degrees\n</tool_response><|im_end|>"),
            "{text}"
        );
    }

    #[test]
    fn a_template_s_refusal_reaches_the_caller_in_its_own_words() {
        let error =
            render("{{ raise_exception('roles must alternate') }}", &[says("user", "Hi")], &[]).unwrap_err();
        assert_eq!(error.message, "the model's chat template refuses the messages: roles must alternate");
        assert_eq!(error.details["param"], "messages");
    }

    #[test]
    fn pictures_and_missing_roles_are_refused_by_place() {
        let picture =
            Message { content: Content::Parts(vec![Part::Image { tensor: "a".into() }]), ..says("user", "") };
        let error = render(SMOLLM2, &[says("user", "Hi"), picture], &[]).unwrap_err();
        assert_eq!(error.details["param"], "messages[1].content[0]");
        let error = render(SMOLLM2, &[says("", "Hi")], &[]).unwrap_err();
        assert_eq!(error.details["param"], "messages[0].role");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(99) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(render(source, &[says("user", "Hi")], &[]).unwrap_err().message.contains("too long"));
    }

    #[test]
    fn a_broken_template_is_the_model_s_fault() {
        assert_eq!(render("{% for %}", &[], &[]).unwrap_err().reason.as_deref(), Some("model_invalid"));
    }

    #[test]
    fn python_s_strings_and_dates_work() {
        let source =
            "{{ messages[0].content.strip().split(' ')[-1] }}|{{ strftime_now('%d %b %Y') }}|{{ bos_token }}";
        assert_eq!(render(source, &[says("user", " a b ")], &[]).unwrap(), "b|21 Nov 2024|<s>");
        assert_eq!(strftime(951_782_400, "%A %e %B %y %H:%M:%S%%%q"), "Tuesday 29 February 00 00:00:00%%q");
    }
}
