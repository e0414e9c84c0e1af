# Completion of paceline for fish.
function __paceline_offered
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' $HOME -- $before[1])
    type -q -- $program; or set program @PROGRAM@
    set -e before[1]
    $program completion reply fish $before "$current" 2>/dev/null
end
complete -c paceline -f -a '(__paceline_offered)'
