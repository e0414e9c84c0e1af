# Completion of paceline for bash.
_paceline() {
    local program=${COMP_WORDS[0]/#\~/$HOME}
    type -P -- "$program" > /dev/null || program=@PROGRAM@
    mapfile -t COMPREPLY < <("$program" completion reply bash "${COMP_LINE:0:COMP_POINT}" "$2" 2> /dev/null)
    [[ ${COMPREPLY[0]-} == *[=/.] ]] && compopt -o nospace
}
complete -F _paceline paceline
