/*
 * Reads a JSON object member by member: strictly, without memory of its own, no deeper than JSON_DEPTH. A string's
 * value is given as it is written, between its quotes, with its escapes: a piece of it is good inside other JSON.
 */
#ifndef JSON_H
#define JSON_H

#include "backplane.h"
#include <string.h>

#define JSON_DEPTH 64

typedef struct json {
  const unsigned char *at, *end;
} json;

/* What a value is, by its first letter: '"', '{', '[', 't', 'f', 'n', or '0' for numbers. */
typedef int (*json_each)(void *ctx, bp_str name, char kind, bp_str value);

static void json_space(json *j) {
  while (j->at < j->end && (*j->at == ' ' || *j->at == '\t' || *j->at == '\n' || *j->at == '\r')) j->at++;
}

static int json_take(json *j, char letter) {
  json_space(j);
  if (j->at == j->end || *j->at != (unsigned char)letter) return 0;
  j->at++;
  return 1;
}

/* The four hexadecimal digits behind \u, or -1. */
static long json_hex(json *j) {
  long value = 0;
  int i;
  if (j->end - j->at < 4) return -1;
  for (i = 0; i < 4; i++) {
    unsigned char c = *j->at++;
    int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

static int json_escape(json *j) {
  long unit;
  if (j->at == j->end) return 0;
  if (*j->at != 'u') return strchr("\"\\/bfnrt", *j->at) != NULL && *j->at++ != 0;
  j->at++;
  unit = json_hex(j);
  if (unit < 0 || (unit >= 0xDC00 && unit <= 0xDFFF)) return 0;
  if (unit < 0xD800 || unit > 0xDBFF) return 1;
  /* The first half of a pair: the second has to follow. */
  if (j->end - j->at < 2 || j->at[0] != '\\' || j->at[1] != 'u') return 0;
  j->at += 2;
  unit = json_hex(j);
  return unit >= 0xDC00 && unit <= 0xDFFF;
}

/* One character of more than a byte, as UTF-8 allows it. */
static int json_utf8(json *j) {
  unsigned char first = *j->at, low = 0x80, high = 0xBF;
  int more = first >= 0xC2 && first <= 0xDF ? 1 : first >= 0xE0 && first <= 0xEF ? 2 : first >= 0xF0 && first <= 0xF4 ? 3 : 0;
  if (more == 0 || j->end - j->at <= more) return 0;
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  for (j->at++; more > 0; more--, j->at++, low = 0x80, high = 0xBF)
    if (*j->at < low || *j->at > high) return 0;
  return 1;
}

static int json_string(json *j, bp_str *text) {
  const unsigned char *start;
  if (!json_take(j, '"')) return 0;
  start = j->at;
  while (j->at < j->end && *j->at != '"') {
    if (*j->at < 0x20) return 0;
    if (*j->at >= 0x80) {
      if (!json_utf8(j)) return 0;
    } else if (*j->at++ == '\\' && !json_escape(j)) {
      return 0;
    }
  }
  text->ptr = (const char *)start;
  text->len = (uint64_t)(j->at - start);
  return json_take(j, '"');
}

static int json_digits(json *j) {
  const unsigned char *start = j->at;
  while (j->at < j->end && *j->at >= '0' && *j->at <= '9') j->at++;
  return j->at > start;
}

static int json_number(json *j) {
  if (j->at < j->end && *j->at == '-') j->at++;
  if (j->at < j->end && *j->at == '0') j->at++;
  else if (!json_digits(j)) return 0;
  if (j->at < j->end && *j->at == '.') {
    j->at++;
    if (!json_digits(j)) return 0;
  }
  if (j->at < j->end && (*j->at == 'e' || *j->at == 'E')) {
    j->at++;
    if (j->at < j->end && (*j->at == '+' || *j->at == '-')) j->at++;
    if (!json_digits(j)) return 0;
  }
  return 1;
}

static int json_word(json *j, const char *word) {
  size_t len = strlen(word);
  if ((size_t)(j->end - j->at) < len || memcmp(j->at, word, len) != 0) return 0;
  j->at += len;
  return 1;
}

/* Any value; text is what stands in the quotes of a string, and the whole of everything else. */
static int json_value(json *j, int depth, char *kind, bp_str *text) {
  const unsigned char *start;
  bp_str inner;
  char any;
  json_space(j);
  if (j->at == j->end || depth > JSON_DEPTH) return 0;
  start = j->at;
  *kind = (*start >= '0' && *start <= '9') || *start == '-' ? '0' : (char)*start;
  switch (*kind) {
    case '"': return json_string(j, text);
    case 't': if (!json_word(j, "true")) return 0; break;
    case 'f': if (!json_word(j, "false")) return 0; break;
    case 'n': if (!json_word(j, "null")) return 0; break;
    case '0': if (!json_number(j)) return 0; break;
    case '[':
      j->at++;
      if (json_take(j, ']')) break;
      do if (!json_value(j, depth + 1, &any, &inner)) return 0; while (json_take(j, ','));
      if (!json_take(j, ']')) return 0;
      break;
    case '{':
      j->at++;
      if (json_take(j, '}')) break;
      do if (!json_string(j, &inner) || !json_take(j, ':') || !json_value(j, depth + 1, &any, &inner)) return 0; while (json_take(j, ','));
      if (!json_take(j, '}')) return 0;
      break;
    default: return 0;
  }
  text->ptr = (const char *)start;
  text->len = (uint64_t)(j->at - start);
  return 1;
}

/* Calls each(ctx, ..) for every member of an object until one answers 0. 0 too when text is not a JSON object. */
static int json_object(bp_str text, json_each each, void *ctx) {
  json j;
  bp_str name, value;
  char kind;
  j.at = (const unsigned char *)text.ptr;
  j.end = j.at + text.len;
  if (!json_take(&j, '{')) return 0;
  if (!json_take(&j, '}')) {
    do {
      if (!json_string(&j, &name) || !json_take(&j, ':') || !json_value(&j, 0, &kind, &value)) return 0;
      if (!each(ctx, name, kind, value)) return 0;
    } while (json_take(&j, ','));
    if (!json_take(&j, '}')) return 0;
  }
  json_space(&j);
  return j.at == j.end;
}

#endif /* JSON_H */
