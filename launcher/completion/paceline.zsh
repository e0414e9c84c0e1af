#compdef paceline
# Completion of paceline for zsh.
_paceline() {
    local program=${words[1]/#\~/$HOME} line
    local -a done done_shown open open_shown
    whence -p -- "$program" > /dev/null || program=@PROGRAM@
    for line in "${(@f)$("$program" completion reply zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2> /dev/null)}"; do
        [[ -n $line ]] || continue
        # What ends so is to be written on: no space behind it.
        if [[ ${line%%$'\t'*} == *[=/.] ]]; then
            open+=("${line%%$'\t'*}")
            open_shown+=("${line/$'\t'/  -- }")
        else
            done+=("${line%%$'\t'*}")
            done_shown+=("${line/$'\t'/  -- }")
        fi
    done
    compadd -l -d done_shown -a done
    compadd -S '' -l -d open_shown -a open
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _paceline paceline
