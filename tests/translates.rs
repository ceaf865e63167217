//! Translation through the running program: a document with its format intact, LibreTranslate's API with its own client, the
//! command line. Needs Apertium's pair English-Spanish, which `make setup` installs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's")]

use e2e::{Server, python, root, state_with_models_of};
use serde_json::{Value, json};

const MARKDOWN: &str = "# The house\n\n- The **house** is big.\n- Read [the page](https://a.b/c) with `make run`.\n\n\
                        ```sh\nmake run   # the house\n```\n\n| the city | {name} |\n|---|---|\n| the garden | 1,234.5 |\n";
const SPANISH: &str = "# La casa\n\n- La **casa** es grande.\n- Leído [la página](https://a.b/c) con `make run`.\n\n\
                       ```sh\nmake run   # the house\n```\n\n| La ciudad | {name} |\n|---|---|\n| El jardín | 1,234.5 |\n";

/// No chat model: what Apertium does not serve is not served.
fn server() -> Server {
    Server::start_on(state_with_models_of(&["lid.176"]), "")
}

#[test]
fn a_markdown_file_is_translated_with_its_format_intact() {
    let server = server();
    let params = json!({"text": [MARKDOWN], "source": "en", "target": "es", "format": "markdown"});
    let (status, answer) = server.post("/v1/capabilities/translate", &json!({"params": params}));
    assert_eq!(status, 200, "{answer}");
    let translation = &answer["result"]["translations"][0];
    assert_eq!(translation["text"], SPANISH);
    assert_eq!(translation["engine"], "apertium");
    assert!((0.5..1.0).contains(&answer["confidence"].as_f64().unwrap()), "{answer}");

    let file = server.state.path().join("house.md");
    std::fs::write(&file, MARKDOWN).unwrap();
    let output = server.cli(&["translate", "--from", "en", "--to", "es", file.to_str().unwrap()]);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        SPANISH,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn libretranslate_s_own_client_is_answered() {
    let script = "import sys, json\n\
                  from libretranslatepy import LibreTranslateAPI\n\
                  api = LibreTranslateAPI(sys.argv[1], sys.argv[2])\n\
                  codes = {l['code']: l['targets'] for l in api.languages()}\n\
                  print(json.dumps([api.translate('The house is big.', 'en', 'es'),\n\
                  api.translate('La casa es grande y bonita, y mi hermano vive en ella.', 'auto', 'en'),\n\
                  api.detect('La casa es grande y bonita, y mi hermano vive en ella.')[0]['language'], codes['en'], codes['es']]))\n";
    let server = server();
    let output = python().args(["-c", script, &server.url, &server.key]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let answers: Value = serde_json::from_str(&said)
        .unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(answers[0], "La casa es grande.");
    assert!(answers[1].as_str().unwrap().starts_with("The house is big"), "{answers}");
    assert_eq!(answers[2], "es");
    assert!(answers[3].as_array().unwrap().contains(&json!("es")), "{answers}");
    assert!(answers[4].as_array().unwrap().contains(&json!("en")), "{answers}");
}

/// A request without our header: as LibreTranslate's clients send it.
fn ask(server: &Server, path: &str, kind: &str, body: &str) -> (u16, Value) {
    let client = reqwest::blocking::Client::new();
    let request =
        client.post(format!("{}{path}", server.url)).header("content-type", kind).body(body.to_owned());
    let answer = request.send().unwrap();
    (answer.status().as_u16(), answer.json().unwrap())
}

fn json_of(server: &Server, mut body: Value) -> (u16, Value) {
    body["api_key"] = server.key.clone().into();
    ask(server, "/translate", "application/json", &body.to_string())
}

#[test]
fn libretranslate_s_requests_are_understood_and_refused_in_its_words() {
    let server = &server();
    let (status, answer) =
        json_of(server, json!({"q": ["The house", "The city"], "source": "en", "target": "es"}));
    assert_eq!((status, &answer["translatedText"]), (200, &json!(["La casa", "La ciudad"])));
    let html = json!({"q": "<p>The <b>house</b> &amp; the city</p>", "source": "en", "target": "es", "format": "html"});
    assert_eq!(json_of(server, html).1["translatedText"], "<p>La <b>casa</b> &amp; la ciudad</p>");
    let auto =
        json!({"q": "My brother lives in a big house.", "source": "auto", "target": "es", "alternatives": 2});
    let (_, answer) = json_of(server, auto);
    assert_eq!(answer["detectedLanguage"]["language"], "en");
    assert!(answer["detectedLanguage"]["confidence"].as_f64().unwrap() > 50.0, "{answer}");
    assert!(answer["alternatives"].is_array());

    let form = format!("q=The+house&source=en&target=es&api_key={}", server.key);
    let (status, answer) = ask(server, "/translate", "application/x-www-form-urlencoded", &form);
    assert_eq!((status, &answer["translatedText"]), (200, &json!("La casa")));

    for (body, status, error) in [
        (json!({"source": "en", "target": "es"}), 400, "Invalid request: missing q parameter"),
        (json!({"q": "x", "target": "es"}), 400, "Invalid request: missing source parameter"),
        (json!({"q": "x", "source": "en"}), 400, "Invalid request: missing target parameter"),
        (json!({"q": "x", "source": "xx", "target": "es"}), 400, "xx is not supported"),
        (json!({"q": "x", "source": "en", "target": "xx"}), 400, "xx is not supported"),
        (
            json!({"q": "The house", "source": "en", "target": "ja"}),
            400,
            "Japanese (ja) is not available as a target language from English (en)",
        ),
        (
            json!({"q": "x", "source": "en", "target": "es", "format": "rtf"}),
            400,
            "rtf format is not supported",
        ),
    ] {
        assert_eq!(json_of(server, body.clone()), (status, json!({"error": error})), "{body}");
    }
    let (status, answer) =
        ask(server, "/translate", "application/json", r#"{"q":"x","source":"en","target":"es"}"#);
    assert_eq!(
        (status, answer),
        (400, json!({"error": "Please contact the server operator to get an API key"}))
    );
    let (status, answer) = ask(server, "/detect", "application/json", r#"{"q":"x","api_key":"sk-wrong"}"#);
    assert_eq!((status, answer), (403, json!({"error": "Invalid API key"})));
    let (status, answer) = ask(server, "/translate", "application/json", "[1]");
    assert_eq!((status, answer), (400, json!({"error": "Invalid JSON format"})));
    assert_eq!(server.get("/frontend/settings").1["keyRequired"], true);
}

const CUES: &str = "1\r\n00:00:01,000 --> 00:00:02,500\r\nThe <i>house</i> is big.\r\n\r\n2\r\n00:00:03,000 --> 00:00:04,000\r\n\
                    - The city\r\n- The garden\r\n";
const SPANISH_CUES: &str = "1\r\n00:00:01,000 --> 00:00:02,500\r\nLa <i>casa</i> es grande.\r\n\r\n2\r\n00:00:03,000 --> 00:00:04,000\r\n\
                    - La ciudad\r\n- El jardín\r\n";

#[test]
fn a_file_is_translated_and_fetched() {
    let server = &server();
    let part =
        |head: &str, body: &str| format!("--b\r\ncontent-disposition: form-data; {head}\r\n\r\n{body}\r\n");
    for (name, translated, text, spanish) in [
        ("../house x.md", "house_x_es.md", MARKDOWN, SPANISH),
        ("film.srt", "film_es.srt", CUES, SPANISH_CUES),
    ] {
        let form = [
            part("name=\"source\"", "en"),
            part("name=\"target\"", "es"),
            part(&format!("name=\"file\"; filename=\"{name}\""), text),
            "--b--\r\n".to_owned(),
        ];
        let request = server
            .request("POST", "/translate_file")
            .header("content-type", "multipart/form-data; boundary=b");
        let answer = request.body(form.concat()).send().unwrap();
        assert_eq!(answer.status(), 200);
        let url = answer.json::<Value>().unwrap()["translatedFileUrl"].as_str().unwrap().to_owned();
        assert!(url.starts_with(&server.url) && url.ends_with(&format!(".{translated}")), "{url}");
        let file = reqwest::blocking::get(url).unwrap();
        let disposition = format!("attachment; filename=\"{translated}\"");
        assert_eq!(file.headers()["content-disposition"].to_str().unwrap(), disposition);
        assert_eq!(file.text().unwrap(), spanish);
    }
    assert_eq!(server.get("/download_file/nothing.md").0, 404);
    let file = server.state.path().join("film.srt");
    std::fs::write(&file, CUES).unwrap();
    let output = server.cli(&["translate", "--from", "en", "--to", "es", file.to_str().unwrap()]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), SPANISH_CUES);
}

#[test]
fn a_chat_model_translates_what_nothing_else_does_and_harms_nothing() {
    let server = Server::start_on(state_with_models_of(&["qwen2.5-coder%3a0.5b"]), "");
    let text =
        "# Good morning\n\nThe **house** is big, {name}.\n\n```sh\nmake run\n```\n\nSee <https://a.b/c>.\n";
    let params = json!({"text": [text], "source": "en", "target": "de", "format": "markdown"});
    let ask = || server.post("/v1/capabilities/translate", &json!({"params": params}));
    // The first bid of llama.cpp may come too late on a machine that is busy.
    e2e::until("the chat model is there", || ask().0 != 503);
    let (status, answer) = ask();
    assert_eq!(status, 200, "{answer}");
    let translation = &answer["result"]["translations"][0];
    assert_eq!(translation["engine"], "chat");
    let german = translation["text"].as_str().unwrap();
    // How good it is is the model's business; what is kept is ours.
    assert!(
        german != text && german.starts_with("# ") && german.contains("\n\n```sh\nmake run\n```\n\n"),
        "{german}"
    );
    for kept in ["**", "{name}", "<https://a.b/c>"] {
        assert_eq!(german.matches(kept).count(), text.matches(kept).count(), "{kept}: {german}");
    }
    assert!((0.0..1.0).contains(&translation["confidence"].as_f64().unwrap()), "{answer}");
}

/// A real small model, which answers in English, before a larger one; and alone.
#[test]
fn what_a_small_chat_model_cannot_do_a_larger_one_is_asked_for_and_each_is_named() {
    let of = |models: &str| {
        let settings = format!("[plugins.settings.\"dev.backplane.translation\"]\nchat_model = {models}\n");
        Server::start_on(state_with_models_of(&["smollm2", "qwen2.5-coder%3a0.5b"]), &settings)
    };
    let server = of("[\"smollm2\", \"missing\", \"qwen2.5-coder:0.5b\"]");
    let file = server.state.path().join("house.txt");
    std::fs::write(&file, "Please close the window before you leave the room.\n").unwrap();
    let translate = |server: &Server, to: &str| {
        server.cli(&["translate", "--from", "en", "--to", to, file.to_str().unwrap(), "--json"])
    };
    let output = translate(&server, "de");
    let shown: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(
        (&shown["engine"], &shown["models"]),
        (&json!("chat"), &json!(["qwen2.5-coder:0.5b"])),
        "{shown}"
    );

    let server = of("\"smollm2\"");
    let output = translate(&server, "de");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let told = "nothing of the text was translated from English (`en`) into German (`de`): the chat model `smollm2` answered in \
                English, not German";
    assert!(output.stdout.is_empty() && said.contains(told), "{said}");
    // Whom the router chose is named as well.
    drop(server);
    let server = Server::start_on(state_with_models_of(&["smollm2"]), "");
    let params = json!({"text": ["Please close the window before you leave the room."], "source": "en", "target": "de"});
    let (status, answer) = server.post("/v1/capabilities/translate", &json!({"params": params}));
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("untranslated")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("the chat model `smollm2` "), "{answer}");
}

/// What `/languages` lists is served, and what it does not list is refused: of an engine made for a pair, of a chat model whose
/// card says what it knows, and of one that says nothing.
#[test]
fn what_is_listed_is_served_and_nothing_else() {
    let state = state_with_models_of(&["smollm2", "qwen2.5-coder%3a0.5b"]);
    let card = state.path().join("models/cards/qwen2.5-coder%3a0.5b.toml");
    let says = std::fs::read_to_string(&card).unwrap();
    // It is a link to the card of all tests.
    std::fs::remove_file(&card).unwrap();
    let mut knows: toml::Table = says.parse().unwrap();
    knows.insert("languages".to_owned(), toml::Value::try_from(["de", "en", "fr"]).unwrap());
    std::fs::write(&card, knows.to_string()).unwrap();
    // A route, by another name.
    let chosen = "[models.aliases]\ngood = \"best\"\n[models.routes.\"best\"]\nmodels = [\"smollm2\", \"qwen2.5-coder:0.5b\"]\n\
                  [plugins.settings.\"dev.backplane.translation\"]\nchat_model = \"good\"\n";
    for (state, settings, listed) in [
        (
            state,
            chosen,
            &[("de", "de en fr"), ("en", "de en es fr"), ("es", "en es"), ("fr", "de en fr")][..],
        ),
        (state_with_models_of(&["smollm2"]), "", &[("en", "en es"), ("es", "en es")]),
    ] {
        let server = &Server::start_on(state, settings);
        let languages = server.get("/languages").1;
        let expected = |(code, targets): &(&str, &str)| json!([code, targets.split(' ').collect::<Vec<_>>()]);
        let found = languages.as_array().unwrap().iter().map(|one| json!([one["code"], one["targets"]]));
        assert_eq!(found.collect::<Vec<_>>(), listed.iter().map(expected).collect::<Vec<_>>());
        for source in ["de", "en", "es", "fr", "ja"] {
            for target in ["de", "en", "es", "fr", "ja", "zh-Hant"] {
                let is_listed =
                    listed.iter().any(|(code, targets)| *code == source && targets.contains(target));
                // Nothing to translate, for no model to fail at.
                let (status, answer) = json_of(server, json!({"q": "1", "source": source, "target": target}));
                if is_listed || source == target {
                    assert_eq!(
                        (status, &answer["translatedText"]),
                        (200, &json!("1")),
                        "{source}-{target}: {answer}"
                    );
                    continue;
                }
                let said = answer["error"].as_str().unwrap();
                assert_eq!(status, 400, "{source}-{target}: {answer}");
                assert!(said.contains(" is not available as a target language from "), "{said}");
            }
        }
        // Detected.
        let body = json!({"q": "Mein Bruder wohnt in einem großen Haus.", "source": "auto", "target": "it"});
        let said = json_of(server, body);
        let refused = "Italian (it) is not available as a target language from German (de)";
        assert_eq!(said, (400, json!({"error": refused})));
        let body = json!({"q": ["The house is big and white, and the city is far from here.", "Mein Bruder wohnt in einem großen Haus am See."],
                          "source": "auto", "target": "es"});
        let (status, answer) = json_of(server, body);
        let refused = "q[1]: Spanish (es) is not available as a target language from German (de)";
        assert_eq!((status, &answer["error"]), (400, &json!(refused)));
        // Codes in other forms.
        for (source, target) in
            [("en-US", "gl"), ("EN", "gl"), ("en", "gl-ES"), ("en", "zt"), ("en_GB", "ZH-tw")]
        {
            let body = json!({"q": "The house is big.", "source": source, "target": target});
            let (status, answer) = json_of(server, body);
            let said = answer["error"].as_str().unwrap();
            assert!(
                status == 400 && said.contains(" is not available as a target language from English (en)"),
                "{said}"
            );
        }
        let body = json!({"q": "The house", "source": "EN-us", "target": "es-MX"});
        assert_eq!(json_of(server, body).1["translatedText"], "La casa");
    }
}

/// The folder that Optimum would write for a model, with the card of the plugin's README, and texts with their translations by
/// CTranslate2.
fn opus() -> (tempfile::TempDir, Vec<(String, String)>) {
    let plugin = root().join("plugins/translation");
    let folder = tempfile::tempdir().unwrap();
    let made = python()
        .arg(plugin.join("tests/seq2seq/make.py"))
        .arg(folder.path())
        .arg(plugin.join("tests/data/languages.tsv"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let readme = std::fs::read_to_string(plugin.join("README.md")).unwrap();
    let card = readme.split("```toml\n").find(|block| block.starts_with("name = \"opus-mt-en-de\"")).unwrap();
    std::fs::write(folder.path().join("model.toml"), card.split("```").next().unwrap()).unwrap();
    let reference = std::fs::read(folder.path().join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let texts: Vec<(String, String)> = serde_json::from_value(reference["texts"].clone()).unwrap();
    // Letters alone: what protects numbers and signs has tests of its own.
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphabetic() || c == ' ');
    (folder, texts.into_iter().filter(|(from, to)| plain(from) && plain(to)).collect())
}

#[test]
fn a_model_of_marian_s_is_pulled_by_the_card_of_the_readme_and_translates() {
    let (folder, texts) = opus();
    let pairs =
        "[plugins.settings.\"dev.backplane.translation\"]\npairs = { \"en-de\" = \"opus-mt-en-de\" }\n";
    let server = Server::start_on(state_with_models_of(&["lid.176"]), pairs);
    let pulled = server.cli(&["pull", folder.path().to_str().unwrap()]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let (sources, translations): (Vec<String>, Vec<String>) = texts.into_iter().unzip();
    assert!(10 < sources.len());
    let ask =
        || json_of(&server, json!({"q": sources, "source": "en", "target": "de", "model": "opus-mt-en-de"}));
    e2e::until("the model is there", || ask().0 != 404);
    let (status, answer) = ask();
    assert_eq!((status, &answer["translatedText"]), (200, &json!(translations)), "{answer}");

    // Who names no model: the configuration gives it the pair, and the list of languages has it.
    let (status, answer) = json_of(&server, json!({"q": sources[0], "source": "en", "target": "de"}));
    assert_eq!((status, &answer["translatedText"]), (200, &json!(translations[0])), "{answer}");
    let languages = server.get("/languages").1;
    let english = languages.as_array().unwrap().iter().find(|language| language["code"] == "en").unwrap();
    assert!(english["targets"].as_array().unwrap().contains(&json!("de")), "{english}");

    let markdown = format!("# {}\n\n```sh\nmake run\n```\n\nHello {{name}}.\n", sources[0]);
    let params = json!({"text": [markdown], "source": "en", "target": "de", "format": "markdown"});
    let body = json!({"model": "opus-mt-en-de", "params": params});
    let (status, answer) = server.post("/v1/capabilities/translate", &body);
    assert_eq!(status, 200, "{answer}");
    let translation = &answer["result"]["translations"][0];
    assert_eq!(translation["engine"], "marian");
    let text = translation["text"].as_str().unwrap();
    assert!(text.starts_with(&format!("# {}\n\n```sh\nmake run\n```\n\n", translations[0])), "{text}");
    assert_eq!(text.matches("{name}").count(), 1, "{text}");
    assert!((0.0..1.0).contains(&answer["confidence"].as_f64().unwrap()), "{answer}");

    let (status, answer) =
        json_of(&server, json!({"q": "x", "source": "de", "target": "en", "model": "opus-mt-en-de"}));
    assert_eq!(status, 400, "{answer}");
}

/// A route from a small model to a surer engine: what is not sure enough is asked of the next, whatever it said before.
#[test]
fn a_translation_that_is_not_sure_enough_is_asked_of_the_next_engine() {
    let (folder, _) = opus();
    let card = folder.path().join("model.toml");
    let spanish = std::fs::read_to_string(&card).unwrap().replace("[\"en\", \"de\"]", "[\"en\", \"es\"]");
    std::fs::write(&card, spanish.replace("opus-mt-en-de", "opus")).unwrap();
    // Random weights are sure of nothing, and Apertium is by 0.8 of words that its dictionary has.
    let routes = "[models.routes.careful]\nmodels = ['opus', 'apertium']\nescalate_below = 0.75\n\
                  [models.routes.careless]\nmodels = ['opus', 'apertium']\nescalate_below = 0.0\n\
                  [models.routes.sure]\nmodels = ['apertium', 'opus']\nescalate_below = 0.75\n";
    let server = Server::start_on(state_with_models_of(&["lid.176"]), routes);
    let pulled = server.cli(&["pull", folder.path().to_str().unwrap()]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let ask = |model: &str, text: &str| {
        let params = json!({"text": [text], "source": "en", "target": "es"});
        let body = json!({"model": model, "params": params});
        let answer = server.request("POST", "/v1/capabilities/translate").json(&body).send().unwrap();
        let header = |name: &str| {
            answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let headers = ["x-model", "x-route-refused", "x-confidence"].map(header);
        (answer.status().as_u16(), headers, answer.json::<Value>().unwrap_or_default())
    };
    e2e::until("the model is there", || ask("opus", "The house.").0 == 200);

    let (status, [model, refused, confidence], answer) = ask("careful", "The house is big.");
    assert_eq!((status, &*model, &*refused), (200, "apertium", "opus=low_confidence"), "{answer}");
    let translation = &answer["result"]["translations"][0];
    assert_eq!(
        (&translation["text"], &translation["engine"]),
        (&json!("La casa es grande."), &json!("apertium"))
    );
    assert!(confidence.starts_with("0.8"), "{confidence}");
    assert_eq!(server.metric("backplane_escalations_total"), 1.0);

    // Sure enough: the next is not asked.
    for (route, first) in [("careless", "opus"), ("sure", "apertium")] {
        let (status, [model, refused, _], answer) = ask(route, "The house is big.");
        assert_eq!((status, &*model, &*refused), (200, first, ""), "{route}: {answer}");
    }
    assert_eq!(server.metric("backplane_escalations_total"), 1.0);

    // Nobody is sure of words that no dictionary has: both are asked, and the surer one answers.
    let (status, [model, _, confidence], answer) = ask("sure", "Qwxt zvrb plmq.");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(server.metric("backplane_escalations_total"), 2.0);
    let sure: f64 = confidence.split(';').next().unwrap().parse().unwrap();
    assert!(sure < 0.75 && ["opus", "apertium"].contains(&&*model), "{model}: {confidence}");
}

/// The plugin's own detector stands in where the better one was not pulled.
#[test]
fn languages_are_told_by_the_model_that_was_pulled() {
    for (pulled, told_by) in [(&["lid.176"][..], "lid.176"), (&[], "whatlang")] {
        let server = Server::start_on(state_with_models_of(pulled), "");
        let params = json!({"text": ["Ich hätte gern einen Kaffee und ein Stück Kuchen, bitte."]});
        let asked =
            server.request("POST", "/v1/capabilities/language.detect").json(&json!({"params": params}));
        let answer = asked.send().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-model"].to_str().unwrap(), told_by);
        let answer: Value = answer.json().unwrap();
        assert_eq!(answer["result"]["results"][0]["languages"][0]["language"], "de", "{answer}");
    }
}

/// As in the README, with the engine that is there.
#[test]
fn a_card_that_chooses_an_engine_is_pulled_without_files_or_a_format() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    let card = folder.path().join("rules.toml");
    let text = "name = \"by-rules\"\nplugin = \"dev.backplane.translation\"\ncapabilities = [\"translate\"]\n\n\
                [parameters]\nengines = [\"apertium\"]\n";
    std::fs::write(&card, text).unwrap();
    let pulled = server.cli(&["pull", card.to_str().unwrap()]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let params = json!({"text": ["The house"], "source": "en", "target": "es"});
    let ask =
        || server.post("/v1/capabilities/translate", &json!({"model": "by-rules", "params": params.clone()}));
    e2e::until("the model is there", || ask().0 != 404);
    let (status, answer) = ask();
    let translation = &answer["result"]["translations"][0];
    assert_eq!((status, &translation["text"]), (200, &json!("La casa")), "{answer}");
    assert_eq!(translation["engine"], "apertium");
}
