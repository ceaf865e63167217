# bash splits words at `:`, which names of models hold: the words are put together again, and what bash takes for an
# earlier word is taken off what is offered.
_backplane() {
    local line=${COMP_LINE:0:COMP_POINT} COMP_WORDS COMP_CWORD
    read -ra COMP_WORDS <<<"$line"
    [[ $line == *[[:space:]] ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    local typed=${COMP_WORDS[COMP_CWORD]}
    _clap_complete_backplane "$1" "$typed" "$3"
    [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${typed%"${typed##*:}"}"}")
}
complete -o nospace -o bashdefault -o nosort -F _backplane backplane
