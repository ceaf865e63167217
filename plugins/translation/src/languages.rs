//! Languages: codes, names, scripts, and how the parts of this plugin call them.

/// A language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language {
    /// ISO 639-1 where there is one, else ISO 639-3: what requests and answers say. With a script behind it where that is not
    /// the language's usual one.
    pub code: &'static str,
    /// ISO 639-3: what Apertium and whatlang say. With a script as OPUS writes it.
    pub iso3: &'static str,
    /// In English.
    pub name: &'static str,
    /// Its usual scripts (ISO 15924), the commonest first.
    pub scripts: &'static [&'static str],
}

macro_rules! languages {
    ($($code:literal $iso3:literal $name:literal $($script:literal)+;)*) => {
        &[$(Language { code: $code, iso3: $iso3, name: $name, scripts: &[$($script),+] }),*]
    };
}

/// All that are known here, by code.
pub const LANGUAGES: &[Language] = languages! {
    "af" "afr" "Afrikaans" "Latn"; "am" "amh" "Amharic" "Ethi"; "an" "arg" "Aragonese" "Latn";
    "ar" "ara" "Arabic" "Arab"; "as" "asm" "Assamese" "Beng"; "ast" "ast" "Asturian" "Latn"; "az" "aze" "Azerbaijani" "Latn";
    "ba" "bak" "Bashkir" "Cyrl"; "be" "bel" "Belarusian" "Cyrl"; "bg" "bul" "Bulgarian" "Cyrl"; "bn" "ben" "Bengali" "Beng";
    "bo" "bod" "Tibetan" "Tibt"; "br" "bre" "Breton" "Latn"; "bs" "bos" "Bosnian" "Latn" "Cyrl"; "ca" "cat" "Catalan" "Latn";
    "ceb" "ceb" "Cebuano" "Latn"; "ckb" "ckb" "Central Kurdish" "Arab"; "co" "cos" "Corsican" "Latn"; "crh" "crh" "Crimean Tatar" "Latn" "Cyrl";
    "cs" "ces" "Czech" "Latn"; "cv" "chv" "Chuvash" "Cyrl"; "cy" "cym" "Welsh" "Latn"; "da" "dan" "Danish" "Latn";
    "de" "deu" "German" "Latn"; "dv" "div" "Dhivehi" "Thaa"; "el" "ell" "Greek" "Grek"; "en" "eng" "English" "Latn";
    "eo" "epo" "Esperanto" "Latn"; "es" "spa" "Spanish" "Latn"; "et" "est" "Estonian" "Latn"; "eu" "eus" "Basque" "Latn";
    "fa" "fas" "Persian" "Arab"; "fi" "fin" "Finnish" "Latn"; "fo" "fao" "Faroese" "Latn"; "fr" "fra" "French" "Latn";
    "fy" "fry" "Western Frisian" "Latn"; "ga" "gle" "Irish" "Latn"; "gd" "gla" "Scottish Gaelic" "Latn"; "gl" "glg" "Galician" "Latn";
    "gn" "grn" "Guarani" "Latn"; "gu" "guj" "Gujarati" "Gujr"; "gv" "glv" "Manx" "Latn"; "ha" "hau" "Hausa" "Latn";
    "he" "heb" "Hebrew" "Hebr"; "hi" "hin" "Hindi" "Deva"; "hr" "hrv" "Croatian" "Latn"; "ht" "hat" "Haitian Creole" "Latn";
    "hu" "hun" "Hungarian" "Latn"; "hy" "hye" "Armenian" "Armn"; "ia" "ina" "Interlingua" "Latn"; "id" "ind" "Indonesian" "Latn";
    "ig" "ibo" "Igbo" "Latn"; "io" "ido" "Ido" "Latn"; "is" "isl" "Icelandic" "Latn"; "it" "ita" "Italian" "Latn";
    "ja" "jpn" "Japanese" "Jpan"; "jv" "jav" "Javanese" "Latn"; "ka" "kat" "Georgian" "Geor"; "kk" "kaz" "Kazakh" "Cyrl";
    "km" "khm" "Khmer" "Khmr"; "kn" "kan" "Kannada" "Knda"; "ko" "kor" "Korean" "Kore"; "ku" "kur" "Kurdish" "Latn";
    "kv" "kom" "Komi" "Cyrl"; "kw" "cor" "Cornish" "Latn"; "ky" "kir" "Kyrgyz" "Cyrl"; "la" "lat" "Latin" "Latn";
    "lb" "ltz" "Luxembourgish" "Latn"; "lo" "lao" "Lao" "Laoo"; "lt" "lit" "Lithuanian" "Latn"; "lv" "lav" "Latvian" "Latn";
    "mg" "mlg" "Malagasy" "Latn"; "mi" "mri" "Maori" "Latn"; "mk" "mkd" "Macedonian" "Cyrl"; "ml" "mal" "Malayalam" "Mlym";
    "mn" "mon" "Mongolian" "Cyrl"; "mr" "mar" "Marathi" "Deva"; "ms" "msa" "Malay" "Latn"; "mt" "mlt" "Maltese" "Latn";
    "my" "mya" "Burmese" "Mymr"; "nb" "nob" "Norwegian Bokmål" "Latn"; "ne" "nep" "Nepali" "Deva"; "nl" "nld" "Dutch" "Latn";
    "nn" "nno" "Norwegian Nynorsk" "Latn"; "ny" "nya" "Chichewa" "Latn"; "oc" "oci" "Occitan" "Latn"; "or" "ori" "Odia" "Orya";
    "os" "oss" "Ossetian" "Cyrl"; "pa" "pan" "Punjabi" "Guru"; "pl" "pol" "Polish" "Latn"; "ps" "pus" "Pashto" "Arab";
    "pt" "por" "Portuguese" "Latn"; "qu" "que" "Quechua" "Latn"; "rm" "roh" "Romansh" "Latn"; "ro" "ron" "Romanian" "Latn";
    "ru" "rus" "Russian" "Cyrl"; "rw" "kin" "Kinyarwanda" "Latn"; "sa" "san" "Sanskrit" "Deva"; "sah" "sah" "Yakut" "Cyrl";
    "sc" "srd" "Sardinian" "Latn"; "sco" "sco" "Scots" "Latn"; "sd" "snd" "Sindhi" "Arab"; "se" "sme" "Northern Sami" "Latn";
    "si" "sin" "Sinhala" "Sinh"; "sk" "slk" "Slovak" "Latn"; "sl" "slv" "Slovenian" "Latn"; "sn" "sna" "Shona" "Latn";
    "so" "som" "Somali" "Latn"; "sq" "sqi" "Albanian" "Latn"; "sr" "srp" "Serbian" "Cyrl" "Latn"; "su" "sun" "Sundanese" "Latn";
    "sv" "swe" "Swedish" "Latn"; "sw" "swa" "Swahili" "Latn"; "ta" "tam" "Tamil" "Taml"; "te" "tel" "Telugu" "Telu";
    "tg" "tgk" "Tajik" "Cyrl"; "th" "tha" "Thai" "Thai"; "tk" "tuk" "Turkmen" "Latn"; "tl" "tgl" "Tagalog" "Latn";
    "tr" "tur" "Turkish" "Latn"; "tt" "tat" "Tatar" "Cyrl"; "ug" "uig" "Uyghur" "Arab"; "uk" "ukr" "Ukrainian" "Cyrl";
    "ur" "urd" "Urdu" "Arab"; "uz" "uzb" "Uzbek" "Latn" "Cyrl"; "vi" "vie" "Vietnamese" "Latn"; "vo" "vol" "Volapük" "Latn";
    "wa" "wln" "Walloon" "Latn"; "xh" "xho" "Xhosa" "Latn"; "yi" "yid" "Yiddish" "Hebr"; "yo" "yor" "Yoruba" "Latn";
    "zh" "zho" "Chinese" "Hans" "Hant"; "zu" "zul" "Zulu" "Latn";
};

/// Languages in a script that is not their commonest: who asks for one must not be given the other.
const VARIANTS: &[Language] = languages! {
    "bs-Cyrl" "bos_Cyrl" "Bosnian in Cyrillic script" "Cyrl"; "crh-Cyrl" "crh_Cyrl" "Crimean Tatar in Cyrillic script" "Cyrl";
    "sr-Latn" "srp_Latn" "Serbian in Latin script" "Latn"; "uz-Cyrl" "uzb_Cyrl" "Uzbek in Cyrillic script" "Cyrl";
    "zh-Hant" "zho_Hant" "Traditional Chinese" "Hant";
};

/// All of them, those in another script last.
pub fn all() -> impl Iterator<Item = &'static Language> {
    LANGUAGES.iter().chain(VARIANTS)
}

/// Other names of codes: of standards, of Apertium, of LibreTranslate.
const SYNONYMS: &[(&str, &str)] = &[
    ("no", "nb"),
    ("nor", "nb"),
    ("iw", "he"),
    ("in", "id"),
    ("ji", "yi"),
    ("fil", "tl"),
    ("cmn", "zh"),
    ("pes", "fa"),
    ("azj", "az"),
    ("lvs", "lv"),
    ("ekk", "et"),
    ("zsm", "ms"),
    ("arb", "ar"),
    ("hbs", "hr"),
    ("mol", "ro"),
    ("sh", "hr"),
    ("pb", "pt"),
    ("zlm", "ms"),
    ("kur", "ku"),
    ("swh", "sw"),
    ("npi", "ne"),
    ("ory", "or"),
    ("uzn", "uz"),
    ("khk", "mn"),
    ("ydd", "yi"),
    ("plt", "mg"),
    ("pnb", "pa"),
];

/// What to say of a code that is none.
pub fn unknown(code: &str) -> String {
    format!(
        "`{code}` is no language that is known here; a code is that of ISO 639, such as `de`, `ceb` or `zh-Hant`, and `GET /languages` \
         lists those that are served"
    )
}

/// The language of a code: `en`, `eng`, `en-US`, `EN_us`, `zh-Hans`. One in another script than its usual one is a language of
/// its own, `zh-Hant`, and one in a script that it is not known to have is none. Regions are not told apart.
pub fn find(code: &str) -> Option<&'static Language> {
    let code = code.trim().to_ascii_lowercase();
    let mut tags = code.split(['-', '_']);
    let main = match tags.next().unwrap_or_default() {
        // LibreTranslate's.
        "zt" => return find("zh-hant"),
        main => main,
    };
    let language = by(main).or_else(|| by(SYNONYMS.iter().find(|(other, _)| *other == main)?.1))?;
    let is_script = |tag: &&str| tag.len() == 4 && tag.chars().all(|c| c.is_ascii_alphabetic());
    let taiwan = |tag: &str| language.code == "zh" && matches!(tag, "tw" | "hk" | "mo");
    let tags: Vec<&str> = tags.collect();
    let script = match tags.iter().copied().find(is_script) {
        None if tags.iter().any(|tag| taiwan(tag)) => Some("hant"),
        script => script,
    };
    match script {
        Some(script) if !language.scripts[0].eq_ignore_ascii_case(script) => {
            let code = format!("{}-{script}", language.code);
            VARIANTS.iter().find(|variant| variant.code.eq_ignore_ascii_case(&code))
        }
        _ => Some(language),
    }
}

fn by(code: &str) -> Option<&'static Language> {
    LANGUAGES.iter().find(|language| language.code == code || language.iso3 == code)
}

/// The script (ISO 15924) of a letter, as far as languages here differ in it; `None` for what all share.
pub fn script(c: char) -> Option<&'static str> {
    if !c.is_alphabetic() {
        return None;
    }
    Some(match u32::from(c) {
        0x0041..=0x02AF | 0x1E00..=0x1EFF | 0x2C60..=0x2C7F | 0xA720..=0xA7FF | 0xFF21..=0xFF5A => "Latn",
        0x0370..=0x03FF | 0x1F00..=0x1FFF => "Grek",
        0x0400..=0x052F | 0x1C80..=0x1C8F | 0x2DE0..=0x2DFF | 0xA640..=0xA69F => "Cyrl",
        0x0530..=0x058F => "Armn",
        0x0590..=0x05FF | 0xFB1D..=0xFB4F => "Hebr",
        0x0600..=0x06FF | 0x0750..=0x077F | 0x08A0..=0x08FF | 0xFB50..=0xFDFF | 0xFE70..=0xFEFF => "Arab",
        0x0780..=0x07BF => "Thaa",
        0x0900..=0x097F => "Deva",
        0x0980..=0x09FF => "Beng",
        0x0A00..=0x0A7F => "Guru",
        0x0A80..=0x0AFF => "Gujr",
        0x0B00..=0x0B7F => "Orya",
        0x0B80..=0x0BFF => "Taml",
        0x0C00..=0x0C7F => "Telu",
        0x0C80..=0x0CFF => "Knda",
        0x0D00..=0x0D7F => "Mlym",
        0x0D80..=0x0DFF => "Sinh",
        0x0E00..=0x0E7F => "Thai",
        0x0E80..=0x0EFF => "Laoo",
        0x0F00..=0x0FFF => "Tibt",
        0x1000..=0x109F => "Mymr",
        0x10A0..=0x10FF | 0x1C90..=0x1CBF => "Geor",
        0x1200..=0x139F => "Ethi",
        0x1780..=0x17FF => "Khmr",
        0x3040..=0x30FF | 0x31F0..=0x31FF => "Kana",
        0x1100..=0x11FF | 0x3130..=0x318F | 0xAC00..=0xD7AF => "Hang",
        0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF => "Hani",
        _ => return None,
    })
}

impl Language {
    /// In whatever script.
    pub fn in_any_script(&'static self) -> &'static Language {
        self.code.split_once('-').and_then(|(code, _)| by(code)).unwrap_or(self)
    }

    /// Whether it is written with letters of this script.
    pub fn is_written_in(&self, script: &str) -> bool {
        self.scripts.iter().any(|own| match *own {
            "Jpan" => matches!(script, "Kana" | "Hani"),
            "Kore" => matches!(script, "Hang" | "Hani"),
            "Hans" | "Hant" => script == "Hani",
            own => own == script,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_language_has_one_code_and_a_script() {
        let codes: BTreeSet<_> = LANGUAGES.iter().map(|language| language.code).collect();
        assert_eq!(codes.len(), LANGUAGES.len());
        assert!(92 <= LANGUAGES.len());
        assert!(LANGUAGES.is_sorted_by_key(|language| language.code));
        assert!(LANGUAGES.iter().all(|language| !language.scripts.is_empty() && language.iso3.len() == 3));
        assert!(SYNONYMS.iter().all(|(_, code)| by(code).is_some()));
        // Each other script of a language is one of its own.
        let others = |language: &Language| {
            let code = |script: &&str| format!("{}-{script}", language.code);
            language.scripts[1..].iter().map(code).collect::<Vec<_>>()
        };
        let others: Vec<String> = LANGUAGES.iter().flat_map(others).collect();
        assert_eq!(VARIANTS.iter().map(|variant| variant.code).collect::<Vec<_>>(), others);
        assert!(VARIANTS.iter().all(|variant| find(variant.code) == Some(variant)));
    }

    #[test]
    fn a_code_is_found_in_any_of_its_forms() {
        for code in ["en", "eng", "en-US", "EN_gb", " en "] {
            assert_eq!(find(code).unwrap().code, "en", "{code}");
        }
        for (code, expected) in [
            ("zh-Hans", "zh"),
            ("zh-CN", "zh"),
            ("zh-Hant", "zh-Hant"),
            ("zh_hant_HK", "zh-Hant"),
            ("zh-TW", "zh-Hant"),
            ("zho-Hans-TW", "zh"),
            ("zt", "zh-Hant"),
            ("sr-Cyrl-RS", "sr"),
            ("srp_Latn", "sr-Latn"),
            ("pb", "pt"),
            ("ca-valencia", "ca"),
        ] {
            assert_eq!(find(code).unwrap().code, expected, "{code}");
        }
        for code in ["en-Cyrl", "kk-Latn", "sr-Arab"] {
            assert_eq!(find(code), None, "{code}");
        }
        assert_eq!(find("zh-Hant").unwrap().in_any_script(), find("zh").unwrap());
        assert_eq!(find("no").unwrap().code, "nb");
        assert_eq!(find("xx"), None);
        assert_eq!(find(""), None);
        assert!(find("ja").unwrap().is_written_in(script('か').unwrap()));
        assert!(!find("ru").unwrap().is_written_in(script('a').unwrap()));
    }
}
