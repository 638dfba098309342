# Generated from the command tree by `posduif completion show bash`; a test keeps it fresh.
_posduif_ask() {
    local IFS=$'\n' name
    local posduif=${COMP_WORDS[0]/#\~/$HOME}
    for name in $("$posduif" __complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null); do
        [[ $name == "$cur"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done
}
_posduif() {
    local cur prev path word skip candidates options files
    cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} COMPREPLY=()
    path= skip= files=
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [ -n "$skip" ]; then skip=; continue; fi
        case $word in
        --accept|--all|--as|--budget|--by|--check-age|--color|--config|--confirm|--data-dir|--desk|--device|--dir|--dsn|--engine-config|--engine-port|--engines|--explain|--fail-on|--fields|--for|--from|--jobs|--keep|--limit|--listen|--login|--max-failures|--offset|--older-than|--on|--only|--out|--output|--pause|--pin|--qr|--qr-file|--redis|--refresh|--sample|--server|--since|--skip|--sort|--state|--status|--steps|--times-from|--to|--ttl|--type|--url|--username|--wait|--watch|--wave|--web-user|-o) skip=1 ;;
        -*) ;;
        *) case "$path $word" in
           " quickstart"|" tenant"|" tenant create"|" tenant list"|" tenant show"|" tenant set"|" tenant adopt"|" tenant verify"|" tenant suspend"|" tenant resume"|" tenant rotate-password"|" tenant engine-config"|" tenant drop"|" migrate"|" migrate status"|" migrate list"|" migrate up"|" migrate down"|" migrate abandon"|" migrate verify"|" migrate new"|" user"|" user create"|" user list"|" user show"|" user delete"|" token"|" token create"|" token list"|" token show"|" token revoke"|" token purge"|" enroll"|" enroll complete"|" device"|" device list"|" device show"|" device remove"|" message"|" message send"|" message list"|" message show"|" message inbox"|" message unread"|" message pending"|" message mark"|" message test"|" backup"|" backup create"|" backup list"|" backup show"|" backup verify"|" backup drill"|" backup restore"|" backup discard"|" backup remove"|" backup unpin"|" backup prune"|" health"|" server"|" server list"|" server init"|" server start"|" server stop"|" server status"|" server remove"|" config"|" config show"|" config init"|" doctor"|" completion"|" completion show"|" completion install"|" completion uninstall"|" version") path="$path $word" ;;
           esac ;;
        esac
    done
    case $path in
    "") candidates='quickstart tenant migrate user token enroll device message backup health server config doctor completion version' options='' ;;
    " quickstart") candidates='' options='--remove' ;;
    " tenant") candidates='create list show set adopt verify suspend resume rotate-password engine-config drop' options='' ;;
    " tenant create") candidates='' options='--url --web-user --engine-config --from --engine-port --redis --jobs --list --if-not-exists --ignore-unreachable -n --dry-run' files='--from' ;;
    " tenant list") candidates='' options='--sort --state --sizes' ;;
    " tenant show") candidates='' options='--sizes' ;;
    " tenant set") candidates='' options='--url --desk' ;;
    " tenant adopt") candidates='' options='--url --accept --times-from --keep-times --print-sql --ignore-unreachable -n --dry-run' ;;
    " tenant verify") candidates='' options='--all --repair' ;;
    " tenant suspend") candidates='' options='--confirm -n --dry-run' ;;
    " tenant resume") candidates='' options='-n --dry-run' ;;
    " tenant rotate-password") candidates='' options='--all --from --engine-config --now --jobs --list --confirm' files='--from' ;;
    " tenant engine-config") candidates='' options='--out --refresh --all --jobs --list' files='--out --refresh --all' ;;
    " tenant drop") candidates='' options='--confirm --no-backup -n --dry-run' ;;
    " migrate") candidates='status list up down abandon verify new' options='' ;;
    " migrate status") candidates='' options='--all --check --verify --sample --list' ;;
    " migrate list") candidates='' options='' ;;
    " migrate up") candidates='' options='--all --jobs --wave --max-failures --pause --failed --list --backup -n --dry-run' ;;
    " migrate down") candidates='' options='--all --to --steps --bundled --confirm --jobs --list -n --dry-run' ;;
    " migrate abandon") candidates='' options='--confirm -n --dry-run' ;;
    " migrate verify") candidates='' options='--all --list' ;;
    " migrate new") candidates='' options='--dir' files='--dir' ;;
    " user") candidates='create list show delete' options='' ;;
    " user create") candidates='' options='--type --if-not-exists' ;;
    " user list") candidates='' options='--type --limit --offset' ;;
    " user show") candidates='' options='' ;;
    " user delete") candidates='' options='--confirm -n --dry-run' ;;
    " token") candidates='create list show revoke purge' options='' ;;
    " token create") candidates='' options='--by --for --ttl --qr --qr-file --force' files='--qr-file' ;;
    " token list") candidates='' options='--for --status --limit --offset' ;;
    " token show") candidates='' options='--qr --qr-file --force' files='--qr-file' ;;
    " token revoke") candidates='' options='' ;;
    " token purge") candidates='' options='--all --older-than -n --dry-run' ;;
    " enroll") candidates='complete' options='' ;;
    " enroll complete") candidates='' options='--device --username --replace-device --re-enroll' ;;
    " device") candidates='list show remove' options='' ;;
    " device list") candidates='' options='--limit --offset' ;;
    " device show") candidates='' options='' ;;
    " device remove") candidates='' options='' ;;
    " message") candidates='send list show inbox unread pending mark test' options='' ;;
    " message send") candidates='' options='--from --to' ;;
    " message list") candidates='' options='--from --to --status --limit --offset' ;;
    " message show") candidates='' options='' ;;
    " message inbox") candidates='' options='--limit --offset' ;;
    " message unread") candidates='' options='' ;;
    " message pending") candidates='' options='--device --limit --offset' ;;
    " message mark") candidates='read synced' options='' ;;
    " message test") candidates='' options='--to --from --wait' ;;
    " backup") candidates='create list show verify drill restore discard remove unpin prune' options='' ;;
    " backup create") candidates='' options='--all --since --pin --jobs' ;;
    " backup list") candidates='' options='--check-age' ;;
    " backup show") candidates='' options='' ;;
    " backup verify") candidates='' options='--all --older-than --budget --on --jobs' ;;
    " backup drill") candidates='' options='--budget --on --jobs' ;;
    " backup restore") candidates='' options='--as --all --latest --undo --confirm --no-backup --keep --url --engine-config --ignore-unreachable --jobs --no-migrate -n --dry-run' ;;
    " backup discard") candidates='' options='--confirm -n --dry-run' ;;
    " backup remove") candidates='' options='--confirm' ;;
    " backup unpin") candidates='' options='' ;;
    " backup prune") candidates='' options='--confirm -n --dry-run' ;;
    " health") candidates='' options='--deep --probe --only --skip --list-checks --explain --fail-on --budget --jobs --verbose --redact --out --watch' files='--out' ;;
    " server") candidates='list init start stop status remove' options='' ;;
    " server list") candidates='' options='' ;;
    " server init") candidates='' options='--engines --close --login --print-sql' ;;
    " server start") candidates='' options='--listen' ;;
    " server stop") candidates='' options='' ;;
    " server status") candidates='' options='' ;;
    " server remove") candidates='' options='--confirm' ;;
    " config") candidates='show init' options='' ;;
    " config show") candidates='' options='--origin' ;;
    " config init") candidates='' options='' ;;
    " doctor") candidates='' options='' ;;
    " completion") candidates='show install uninstall' options='' ;;
    " completion show") candidates='bash zsh fish' options='' ;;
    " completion install") candidates='bash zsh fish' options='' ;;
    " completion uninstall") candidates='bash zsh fish' options='' ;;
    " version") candidates='' options='' ;;
    esac
    if [ -n "$skip" ]; then
        case "$path $prev" in
        " health --fail-on") COMPREPLY=($(compgen -W 'critical unknown warning' -- "$cur")) ;;
        " message list --status") COMPREPLY=($(compgen -W 'pending_sync synced read' -- "$cur")) ;;
        " tenant list --sort") COMPREPLY=($(compgen -W 'name size version server' -- "$cur")) ;;
        " token create --qr") COMPREPLY=($(compgen -W 'auto compact large always never plain plain-inverted' -- "$cur")) ;;
        " token list --status") COMPREPLY=($(compgen -W 'active used expired revoked' -- "$cur")) ;;
        " token show --qr") COMPREPLY=($(compgen -W 'auto compact large always never plain plain-inverted' -- "$cur")) ;;
        " user create --type") COMPREPLY=($(compgen -W 'web mobile' -- "$cur")) ;;
        " user list --type") COMPREPLY=($(compgen -W 'web mobile' -- "$cur")) ;;
        *" --color") COMPREPLY=($(compgen -W 'auto always never' -- "$cur")) ;;
        *" --output") COMPREPLY=($(compgen -W 'table tsv json jsonl' -- "$cur")) ;;
        *" -o") COMPREPLY=($(compgen -W 'table tsv json jsonl' -- "$cur")) ;;
        *" --fields")
            local before=${cur%"${cur##*,}"} cur=${cur##*,}
            _posduif_ask; compopt -o nospace 2>/dev/null
            COMPREPLY=("${COMPREPLY[@]/#/$before}") ;;
        *) case " $files --config --data-dir " in
           *" $prev "*) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur")) ;;
           *) _posduif_ask ;;
           esac ;;
        esac
        return
    fi
    [[ $cur == -* ]] && candidates="$options -h --help --server --dsn --config -o --output --fields --color --data-dir -q --quiet --debug"
    COMPREPLY=($(compgen -W "$candidates" -- "$cur"))
    [[ $cur == -* || -n $COMPREPLY ]] || _posduif_ask
}
complete -F _posduif posduif
