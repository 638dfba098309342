# Generated from the command tree by `posduif completion show fish`; a test keeps it fresh.
function __posduif_words
    set -l words (commandline -opc)
    set -l skip 0
    for word in $words[2..-1]
        if test $skip = 1
            set skip 0
        else if contains -- $word --accept --all --as --budget --by --check-age --color --config --confirm --data-dir --desk --device --dir --dsn --engine-config --engine-port --engines --explain --fail-on --fields --for --from --jobs --keep --limit --listen --login --max-failures --offset --older-than --on --only --out --output --pause --pin --qr --qr-file --redis --refresh --sample --server --since --skip --sort --state --status --steps --times-from --to --ttl --type --url --username --wait --watch --wave --web-user -o
            set skip 1
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end
function __posduif_is
    set -l words (__posduif_words)
    test (count $words) -ge (count $argv); and test "$words[1..(count $argv)]" = "$argv"
end
function __posduif_ends
    test "$(__posduif_words)" = "$(string join \n -- $argv)"
end
function __posduif_ask
    set -l words (commandline -opc)
    $words[1] __complete $words[2..-1] 2>/dev/null
end
complete -c posduif -f
complete -c posduif -s h -l help -d "Show this message and exit"
complete -c posduif -l server -x -a '(__posduif_ask)' -d "Only this server (POSDUIF_SERVER)"
complete -c posduif -l dsn -x -a '(__posduif_ask)' -d "This server, in libpq's words and without a password (POSDUIF_DSN)"
complete -c posduif -l config -r -F -d "Configuration file (POSDUIF_CONFIG)"
complete -c posduif -s o -l output -x -a 'table tsv json jsonl' -d "table, tsv, json or jsonl (POSDUIF_OUTPUT)"
complete -c posduif -l fields -x -a '(__posduif_ask)' -d "Only these fields, in this order"
complete -c posduif -l color -x -a 'auto always never' -d "auto, always or never (POSDUIF_COLOR)"
complete -c posduif -l data-dir -r -F -d "Folder of the embedded server (POSDUIF_DATA_DIR)"
complete -c posduif -s q -l quiet -d "No chatter on stderr; the result stays"
complete -c posduif -l debug -d "Show a traceback for an error"
complete -c posduif -n '__posduif_ends' -a quickstart -d "A whole tenant on an embedded server, from nothing."
complete -c posduif -n '__posduif_ends' -a tenant -d "Create, list, show, change and drop tenants."
complete -c posduif -n '__posduif_ends' -a migrate -d "Bring tenants to the newest schema, and see who is where."
complete -c posduif -n '__posduif_ends' -a user -d "The web and mobile users of a tenant."
complete -c posduif -n '__posduif_ends' -a token -d "Enrollment tokens and their QR codes."
complete -c posduif -n '__posduif_ends' -a enroll -d "Complete an enrollment, as a phone would."
complete -c posduif -n '__posduif_ends' -a device -d "The phones that enrolled."
complete -c posduif -n '__posduif_ends' -a message -d "Send, read and mark messages."
complete -c posduif -n '__posduif_ends' -a backup -d "Back up tenants, prove backups by restoring them, and restore."
complete -c posduif -n '__posduif_ends' -a health -d "Report what is wrong with servers and tenants."
complete -c posduif -n '__posduif_ends' -a server -d "The PostgreSQL servers, and the embedded one."
complete -c posduif -n '__posduif_ends' -a config -d "Show or make the configuration."
complete -c posduif -n '__posduif_ends' -a doctor -d "Check this machine, the configuration and the servers."
complete -c posduif -n '__posduif_ends' -a completion -d "Completion of commands by the shell."
complete -c posduif -n '__posduif_ends' -a version -d "Print the version."
complete -c posduif -n '__posduif_is quickstart' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is quickstart' -l remove -d "Remove what an earlier quickstart made"
complete -c posduif -n '__posduif_ends tenant' -a create -d "Create a tenant: its database, its engine's role, its schema"
complete -c posduif -n '__posduif_ends tenant' -a list -d "List the tenants of all servers, from one query per server"
complete -c posduif -n '__posduif_ends tenant' -a show -d "Show one tenant"
complete -c posduif -n '__posduif_ends tenant' -a set -d "Change a tenant's url, or the web user who creates its tokens"
complete -c posduif -n '__posduif_ends tenant' -a adopt -d "Take in a database that other people made: add what it lacks, keep what it has, refuse what differs"
complete -c posduif -n '__posduif_ends tenant' -a verify -d "Compare records with reality: versions, owner, grants, roles, settings"
complete -c posduif -n '__posduif_ends tenant' -a suspend -d "Shut a tenant's engine out and end its sessions"
complete -c posduif -n '__posduif_ends tenant' -a resume -d "Bring a suspended tenant to the newest schema and let its engine in again"
complete -c posduif -n '__posduif_ends tenant' -a rotate-password -d "Give a tenant's engine a new password; without --now, sessions that are connected stay so"
complete -c posduif -n '__posduif_ends tenant' -a engine-config -d "Print the YAML file that a tenant's sync engine reads, with a placeholder for the password; or refresh files"
complete -c posduif -n '__posduif_ends tenant' -a drop -d "Drop a tenant: its engine's sessions, its database with everything in it, its role"
complete -c posduif -n '__posduif_is tenant create' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant create' -l url -x -a '(__posduif_ask)' -d "Origin that phones reach the tenant by: https://host[:port]"
complete -c posduif -n '__posduif_is tenant create' -l web-user -x -a '(__posduif_ask)' -d "Make this first web user, who creates tokens"
complete -c posduif -n '__posduif_is tenant create' -l engine-config -x -a '(__posduif_ask)' -d "Write the sync engine's configuration here (mode 0600); of several tenants, DIR/TENANT.yaml of each"
complete -c posduif -n '__posduif_is tenant create' -l from -r -F -d "Create all tenants of a list that do not exist: CSV, YAML or JSON with name, url, web_user, server, engine_port, redis; - is stdin"
complete -c posduif -n '__posduif_is tenant create' -l engine-port -x -a '(__posduif_ask)' -d "TCP port that the tenant's engine listens on"
complete -c posduif -n '__posduif_is tenant create' -l redis -x -a '(__posduif_ask)' -d "Redis server that the tenant's engine uses"
complete -c posduif -n '__posduif_is tenant create' -l jobs -x -a '(__posduif_ask)' -d "At once on each server, within its share"
complete -c posduif -n '__posduif_is tenant create' -l list -d "List every tenant, the unchanged ones too"
complete -c posduif -n '__posduif_is tenant create' -l if-not-exists -d "Succeed when it exists and does not differ"
complete -c posduif -n '__posduif_is tenant create' -l ignore-unreachable -d "Take a server that cannot be reached for one without this name"
complete -c posduif -n '__posduif_is tenant create' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is tenant list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant list' -l sort -x -a 'name size version server' -d "name, size (largest first), version (oldest first) or server"
complete -c posduif -n '__posduif_is tenant list' -l state -x -a '(__posduif_ask)' -d "Only these, such as suspended; repeatable"
complete -c posduif -n '__posduif_is tenant list' -l sizes -d "Ask for each database's size, too"
complete -c posduif -n '__posduif_is tenant show' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant show' -l sizes -d "Ask for the database's size, too"
complete -c posduif -n '__posduif_is tenant set' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant set' -l url -x -a '(__posduif_ask)' -d "Origin that phones reach the tenant by: https://host[:port]"
complete -c posduif -n '__posduif_is tenant set' -l desk -x -a '(__posduif_ask)' -d "Web user who creates tokens where --by is not given"
complete -c posduif -n '__posduif_is tenant adopt' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant adopt' -l url -x -a '(__posduif_ask)' -d "Origin that phones reach the tenant by: https://host[:port]"
complete -c posduif -n '__posduif_is tenant adopt' -l accept -x -a '(__posduif_ask)' -d "Take in code of other people on posduif's tables, named as the refusal names it; repeatable"
complete -c posduif -n '__posduif_is tenant adopt' -l times-from -x -a '(__posduif_ask)' -d "Convert its times, written in this time zone, to UTC"
complete -c posduif -n '__posduif_is tenant adopt' -l keep-times -d "Leave its times as they are; they count as UTC from then on"
complete -c posduif -n '__posduif_is tenant adopt' -l print-sql -d "Print what a superuser runs once where one owns it; change nothing"
complete -c posduif -n '__posduif_is tenant adopt' -l ignore-unreachable -d "Take a server that cannot be reached for one without this name"
complete -c posduif -n '__posduif_is tenant adopt' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is tenant verify' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant verify' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is tenant verify' -l repair -d "Repair what posduif may repair; the tenant's own table wins"
complete -c posduif -n '__posduif_is tenant suspend' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant suspend' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is tenant suspend' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is tenant resume' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant resume' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is tenant rotate-password' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant rotate-password' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is tenant rotate-password' -l from -r -F -d "The tenants of a list, by its column name; - is stdin"
complete -c posduif -n '__posduif_is tenant rotate-password' -l engine-config -x -a '(__posduif_ask)' -d "Write the sync engine's configuration here (mode 0600); of several tenants, DIR/TENANT.yaml of each"
complete -c posduif -n '__posduif_is tenant rotate-password' -l now -d "End the engine's sessions, too, which the old one opened"
complete -c posduif -n '__posduif_is tenant rotate-password' -l jobs -x -a '(__posduif_ask)' -d "At once on each server, within its share"
complete -c posduif -n '__posduif_is tenant rotate-password' -l list -d "List every tenant, the unchanged ones too"
complete -c posduif -n '__posduif_is tenant rotate-password' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is tenant engine-config' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant engine-config' -l out -r -F -d "Write to this file instead of stdout"
complete -c posduif -n '__posduif_is tenant engine-config' -l refresh -r -F -d "Bring an engine's file, its record and its role's limit to what the configuration says now. The password stays"
complete -c posduif -n '__posduif_is tenant engine-config' -l all -r -F -d "Refresh DIR/TENANT.yaml of every tenant that has one"
complete -c posduif -n '__posduif_is tenant engine-config' -l jobs -x -a '(__posduif_ask)' -d "At once on each server, within its share"
complete -c posduif -n '__posduif_is tenant engine-config' -l list -d "List every tenant, the unchanged ones too"
complete -c posduif -n '__posduif_is tenant drop' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is tenant drop' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is tenant drop' -l no-backup -d "Make no last backup"
complete -c posduif -n '__posduif_is tenant drop' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_ends migrate' -a status -d "Show which version every tenant is at, from one query per server"
complete -c posduif -n '__posduif_ends migrate' -a list -d "List a tenant's migrations: applied, pending, half (applied), missing (its file is gone) or changed since"
complete -c posduif -n '__posduif_ends migrate' -a up -d "Apply pending migrations: each in one transaction with its version row and the record"
complete -c posduif -n '__posduif_ends migrate' -a down -d "Take back the newest migrations by their down sections; data in what they made is lost"
complete -c posduif -n '__posduif_ends migrate' -a abandon -d "Forget how far a half-applied migration is, and run nothing of it; what its statements did stays"
complete -c posduif -n '__posduif_ends migrate' -a verify -d "Compare tenants with the files and with each other: checksums, order, and drift of the schema"
complete -c posduif -n '__posduif_ends migrate' -a new -d "Make the next migration file in a folder of your own"
complete -c posduif -n '__posduif_is migrate status' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is migrate status' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is migrate status' -l check -d "Exit 1 if a tenant is behind, ahead, or failed"
complete -c posduif -n '__posduif_is migrate status' -l verify -d "Visit the tenants, and report wrong records"
complete -c posduif -n '__posduif_is migrate status' -l sample -x -a '(__posduif_ask)' -d "Visit and verify N of them, at random"
complete -c posduif -n '__posduif_is migrate status' -l list -d "List every tenant, the unchanged ones too"
complete -c posduif -n '__posduif_is migrate list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is migrate up' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is migrate up' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is migrate up' -l jobs -x -a '(__posduif_ask)' -d "At once on each server, within its share"
complete -c posduif -n '__posduif_is migrate up' -l wave -x -a '(__posduif_ask)' -d "Cumulative sizes of waves, such as 1,10%,100%; each is verified"
complete -c posduif -n '__posduif_is migrate up' -l max-failures -x -a '(__posduif_ask)' -d "Stop once more than N tenants in all, or N % of the running wave (rounded down), failed"
complete -c posduif -n '__posduif_is migrate up' -l pause -x -a '(__posduif_ask)' -d "Wait this long between waves"
complete -c posduif -n '__posduif_is migrate up' -l failed -d "Only tenants whose last migration failed"
complete -c posduif -n '__posduif_is migrate up' -l list -d "List every tenant, the unchanged ones too"
complete -c posduif -n '__posduif_is migrate up' -l backup -d "Back each tenant up before anything is applied to it, and pin that"
complete -c posduif -n '__posduif_is migrate up' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is migrate down' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is migrate down' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is migrate down' -l to -x -a '(__posduif_ask)' -d "Take back all newer than this"
complete -c posduif -n '__posduif_is migrate down' -l steps -x -a '(__posduif_ask)' -d "Take back this many from each tenant"
complete -c posduif -n '__posduif_is migrate down' -l bundled -d "Take back posduif's own migrations, too"
complete -c posduif -n '__posduif_is migrate down' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is migrate down' -l jobs -x -a '(__posduif_ask)' -d "At once on each server, within its share"
complete -c posduif -n '__posduif_is migrate down' -l list -d "List every tenant, the unchanged ones too"
complete -c posduif -n '__posduif_is migrate down' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is migrate abandon' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is migrate abandon' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is migrate abandon' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is migrate verify' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is migrate verify' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is migrate verify' -l list -d "List every tenant, the unchanged ones too"
complete -c posduif -n '__posduif_is migrate new' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is migrate new' -l dir -r -F -d "Folder; by default the first of migrations.paths"
complete -c posduif -n '__posduif_ends user' -a create -d "Create a user"
complete -c posduif -n '__posduif_ends user' -a list -d "List the users of a tenant by name"
complete -c posduif -n '__posduif_ends user' -a show -d "Show one user"
complete -c posduif -n '__posduif_ends user' -a delete -d "Delete a user with all messages from and to it"
complete -c posduif -n '__posduif_is user create' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is user create' -l type -x -a 'web mobile' -d "Web users work at a desk and create tokens"
complete -c posduif -n '__posduif_is user create' -l if-not-exists -d "Succeed when it exists and does not differ"
complete -c posduif -n '__posduif_is user list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is user list' -l type -x -a 'web mobile' -d "Only this type"
complete -c posduif -n '__posduif_is user list' -l limit -x -a '(__posduif_ask)' -d "At most this many"
complete -c posduif -n '__posduif_is user list' -l offset -x -a '(__posduif_ask)' -d "Skip this many"
complete -c posduif -n '__posduif_is user show' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is user delete' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is user delete' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is user delete' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_ends token' -a create -d "Create an enrollment token and show its QR code; into a pipe, the bare enrollment URL"
complete -c posduif -n '__posduif_ends token' -a list -d "List the tokens of a tenant, the newest first; never their secrets"
complete -c posduif -n '__posduif_ends token' -a show -d "Show one token, by its id, its label or by what the phone's owner has; never its secret, but with --qr"
complete -c posduif -n '__posduif_ends token' -a revoke -d "End a token at once"
complete -c posduif -n '__posduif_ends token' -a purge -d "Delete unused tokens that expired or were revoked a while ago; used ones stay"
complete -c posduif -n '__posduif_is token create' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is token create' -l by -x -a '(__posduif_ask)' -d "Web user who creates it; needed if there are several"
complete -c posduif -n '__posduif_is token create' -l for -x -a '(__posduif_ask)' -d "Whose phone it is for"
complete -c posduif -n '__posduif_is token create' -l ttl -x -a '(__posduif_ask)' -d "How long it lives: 30m, 1h, 7d"
complete -c posduif -n '__posduif_is token create' -l qr -x -a 'auto compact large always never plain plain-inverted' -d "compact (small), large (scans from farther away), plain or plain-inverted (no colours), always (into a pipe too), never, or auto: what fits the terminal"
complete -c posduif -n '__posduif_is token create' -l qr-file -r -F -d "Write the code to FILE.png or FILE.svg"
complete -c posduif -n '__posduif_is token create' -l force -d "Replace the file of --qr-file"
complete -c posduif -n '__posduif_is token list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is token list' -l for -x -a '(__posduif_ask)' -d "Only those for this phone"
complete -c posduif -n '__posduif_is token list' -l status -x -a 'active used expired revoked' -d "Only these: active, used, expired or revoked"
complete -c posduif -n '__posduif_is token list' -l limit -x -a '(__posduif_ask)' -d "At most this many"
complete -c posduif -n '__posduif_is token list' -l offset -x -a '(__posduif_ask)' -d "Skip this many"
complete -c posduif -n '__posduif_is token show' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is token show' -l qr -x -a 'auto compact large always never plain plain-inverted' -d "Draw the code of an enrollment URL again: compact (small), large (scans from farther away), plain or plain-inverted (no colours), always (into a pipe too), never, or auto: what fits the terminal"
complete -c posduif -n '__posduif_is token show' -l qr-file -r -F -d "Write the code to FILE.png or FILE.svg"
complete -c posduif -n '__posduif_is token show' -l force -d "Replace the file of --qr-file"
complete -c posduif -n '__posduif_is token revoke' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is token purge' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is token purge' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is token purge' -l older-than -x -a '(__posduif_ask)' -d "Expired or revoked at least this long ago; 0s: all"
complete -c posduif -n '__posduif_is token purge' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_ends enroll' -a complete -d "Spend a token and make the mobile user, all or nothing"
complete -c posduif -n '__posduif_is enroll complete' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is enroll complete' -l device -x -a '(__posduif_ask)' -d "Id of the phone"
complete -c posduif -n '__posduif_is enroll complete' -l username -x -a '(__posduif_ask)' -d "Name of the mobile user; a new one"
complete -c posduif -n '__posduif_is enroll complete' -l replace-device -d "The user exists: give it this phone in place of its own"
complete -c posduif -n '__posduif_is enroll complete' -l re-enroll -d "The phone is enrolled: it stays with its user"
complete -c posduif -n '__posduif_ends device' -a list -d "List the devices of a tenant by user, with what waits for each"
complete -c posduif -n '__posduif_ends device' -a show -d "Show one device"
complete -c posduif -n '__posduif_ends device' -a remove -d "Take a lost phone from its user; the user and its messages stay, and a new phone can be enrolled"
complete -c posduif -n '__posduif_is device list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is device list' -l limit -x -a '(__posduif_ask)' -d "At most this many"
complete -c posduif -n '__posduif_is device list' -l offset -x -a '(__posduif_ask)' -d "Skip this many"
complete -c posduif -n '__posduif_is device show' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is device remove' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_ends message' -a send -d "Send a message from one user to another"
complete -c posduif -n '__posduif_ends message' -a list -d "List messages of a tenant, the newest first: whether one was fetched, and when it was read"
complete -c posduif -n '__posduif_ends message' -a show -d "Show one message: whether it was fetched and read, and when"
complete -c posduif -n '__posduif_ends message' -a inbox -d "List what a user received, the newest first"
complete -c posduif -n '__posduif_ends message' -a unread -d "Count what a user has not read"
complete -c posduif -n '__posduif_ends message' -a pending -d "List what waits to be fetched by a phone, the oldest first"
complete -c posduif -n '__posduif_ends message' -a mark -d "Mark a message as synced or read"
complete -c posduif -n '__posduif_ends message' -a test -d "Send a test message to a phone and follow it: sent, fetched, read"
complete -c posduif -n '__posduif_is message send' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is message send' -l from -x -a '(__posduif_ask)' -d "Name or id of the sender"
complete -c posduif -n '__posduif_is message send' -l to -x -a '(__posduif_ask)' -d "Name or id of the recipient"
complete -c posduif -n '__posduif_is message list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is message list' -l from -x -a '(__posduif_ask)' -d "Only of this sender"
complete -c posduif -n '__posduif_is message list' -l to -x -a '(__posduif_ask)' -d "Only to this recipient"
complete -c posduif -n '__posduif_is message list' -l status -x -a 'pending_sync synced read' -d "Only these: pending_sync, synced or read"
complete -c posduif -n '__posduif_is message list' -l limit -x -a '(__posduif_ask)' -d "At most this many"
complete -c posduif -n '__posduif_is message list' -l offset -x -a '(__posduif_ask)' -d "Skip this many"
complete -c posduif -n '__posduif_is message show' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is message inbox' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is message inbox' -l limit -x -a '(__posduif_ask)' -d "At most this many"
complete -c posduif -n '__posduif_is message inbox' -l offset -x -a '(__posduif_ask)' -d "Skip this many"
complete -c posduif -n '__posduif_is message unread' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is message pending' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is message pending' -l device -x -a '(__posduif_ask)' -d "Only for this device; else for all users"
complete -c posduif -n '__posduif_is message pending' -l limit -x -a '(__posduif_ask)' -d "At most this many"
complete -c posduif -n '__posduif_is message pending' -l offset -x -a '(__posduif_ask)' -d "Skip this many"
complete -c posduif -n '__posduif_is message mark' -a 'read synced'
complete -c posduif -n '__posduif_is message test' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is message test' -l to -x -a '(__posduif_ask)' -d "User whose phone is to fetch it; else the only phone"
complete -c posduif -n '__posduif_is message test' -l from -x -a '(__posduif_ask)' -d "Web user who sends it; else the desk's user"
complete -c posduif -n '__posduif_is message test' -l wait -x -a '(__posduif_ask)' -d "How long to follow it: 30s, 5m"
complete -c posduif -n '__posduif_ends backup' -a create -d "Back up tenants, each in one snapshot, with the sums of its rows"
complete -c posduif -n '__posduif_ends backup' -a list -d "List backups, the oldest first, and how the last restore of each ended"
complete -c posduif -n '__posduif_ends backup' -a show -d "Show one backup"
complete -c posduif -n '__posduif_ends backup' -a verify -d "Restore backups on a scratch server and compare every row's sum with the dump's"
complete -c posduif -n '__posduif_ends backup' -a drill -d "Prove the newest backup of every tenant, for as long as there is time: cron's form of `verify`"
complete -c posduif -n '__posduif_ends backup' -a restore -d "Restore a backup as a new tenant, or over the one that it is of, and compare what came with the dump"
complete -c posduif -n '__posduif_ends backup' -a discard -d "Drop the databases that restores over a tenant set aside; without a name list those of all"
complete -c posduif -n '__posduif_ends backup' -a remove -d "Delete one backup, after --confirm ID"
complete -c posduif -n '__posduif_ends backup' -a unpin -d "Take back the note that a backup is to be kept"
complete -c posduif -n '__posduif_ends backup' -a prune -d "Delete backups that no rule of backup.keep keeps, and say why each of the others stays"
complete -c posduif -n '__posduif_is backup create' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup create' -l all -d "Every tenant of the configured servers"
complete -c posduif -n '__posduif_is backup create' -l since -x -a '(__posduif_ask)' -d "Leave out who has a backup that is newer: 20h"
complete -c posduif -n '__posduif_is backup create' -l pin -x -a '(__posduif_ask)' -d "Note why these are to be kept"
complete -c posduif -n '__posduif_is backup create' -l jobs -x -a '(__posduif_ask)' -d "At once on each server"
complete -c posduif -n '__posduif_is backup list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup list' -l check-age -x -a '(__posduif_ask)' -d "Exit with 1 if a tenant's newest is older: 26h"
complete -c posduif -n '__posduif_is backup show' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup verify' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup verify' -l all -d "The newest of every tenant"
complete -c posduif -n '__posduif_is backup verify' -l older-than -x -a '(__posduif_ask)' -d "Only those whose last proof is older: 7d"
complete -c posduif -n '__posduif_is backup verify' -l budget -x -a '(__posduif_ask)' -d "Begin none after this time; the longest unproved come first"
complete -c posduif -n '__posduif_is backup verify' -l on -x -a '(__posduif_ask)' -d "Restore on this server, not on one of their own that is thrown away"
complete -c posduif -n '__posduif_is backup verify' -l jobs -x -a '(__posduif_ask)' -d "At once on each server"
complete -c posduif -n '__posduif_is backup drill' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup drill' -l budget -x -a '(__posduif_ask)' -d "Begin none after this time; the longest unproved come first"
complete -c posduif -n '__posduif_is backup drill' -l on -x -a '(__posduif_ask)' -d "Restore on this server, not on one of their own that is thrown away"
complete -c posduif -n '__posduif_is backup drill' -l jobs -x -a '(__posduif_ask)' -d "At once on each server"
complete -c posduif -n '__posduif_is backup restore' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup restore' -l as -x -a '(__posduif_ask)' -d "Name of the new tenant; else the backup's own"
complete -c posduif -n '__posduif_is backup restore' -l all -d "Every tenant of the store that no server has: for a server that is lost"
complete -c posduif -n '__posduif_is backup restore' -l latest -d "With --all: the newest backup of each"
complete -c posduif -n '__posduif_is backup restore' -l undo -d "Take the last restore over a tenant back, or give it up"
complete -c posduif -n '__posduif_is backup restore' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is backup restore' -l no-backup -d "Make no backup of the tenant before it is replaced"
complete -c posduif -n '__posduif_is backup restore' -l keep -x -a '(__posduif_ask)' -d "How long the database that is set aside stays"
complete -c posduif -n '__posduif_is backup restore' -l url -x -a '(__posduif_ask)' -d "Origin that phones reach the tenant by: https://host[:port]"
complete -c posduif -n '__posduif_is backup restore' -l engine-config -x -a '(__posduif_ask)' -d "Write the sync engine's configuration here (mode 0600); of several tenants, DIR/TENANT.yaml of each"
complete -c posduif -n '__posduif_is backup restore' -l ignore-unreachable -d "Take a server that cannot be reached for one without this name"
complete -c posduif -n '__posduif_is backup restore' -l jobs -x -a '(__posduif_ask)' -d "At once on each server"
complete -c posduif -n '__posduif_is backup restore' -l no-migrate -d "Leave the schema as the backup has it; else it is brought up to date"
complete -c posduif -n '__posduif_is backup restore' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is backup discard' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup discard' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is backup discard' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is backup remove' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup remove' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is backup unpin' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup prune' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is backup prune' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_is backup prune' -s n -l dry-run -d "Show what would be done; change nothing"
complete -c posduif -n '__posduif_is health' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is health' -l deep -d "Look into every tenant's database, too"
complete -c posduif -n '__posduif_is health' -l probe -d "Ask each tenant's url, as a phone would"
complete -c posduif -n '__posduif_is health' -l only -x -a '(__posduif_ask)' -d "Only this check, or all of a group such as backup; repeatable"
complete -c posduif -n '__posduif_is health' -l skip -x -a '(__posduif_ask)' -d "Not this check, or none of a group; repeatable"
complete -c posduif -n '__posduif_is health' -l list-checks -d "List the checks; ask no server"
complete -c posduif -n '__posduif_is health' -l explain -x -a '(__posduif_ask)' -d "Say what a check looks at, and why"
complete -c posduif -n '__posduif_is health' -l fail-on -x -a 'critical unknown warning' -d "Exit with 1 from this level on: warning, unknown, critical"
complete -c posduif -n '__posduif_is health' -l budget -x -a '(__posduif_ask)' -d "Visit and probe no further tenant after this time: 60s"
complete -c posduif -n '__posduif_is health' -l jobs -x -a '(__posduif_ask)' -d "At once on each server, within its share"
complete -c posduif -n '__posduif_is health' -l verbose -d "Also the largest tenants, what was skipped, tables and indexes"
complete -c posduif -n '__posduif_is health' -l redact -d "Put numbers in the place of all names"
complete -c posduif -n '__posduif_is health' -l out -r -F -d "Write to this file instead of stdout"
complete -c posduif -n '__posduif_is health' -l watch -x -a '(__posduif_ask)' -d "Show it again and again on a terminal: 5s"
complete -c posduif -n '__posduif_ends server' -a list -d "List the configured servers and how they are"
complete -c posduif -n '__posduif_ends server' -a init -d "Create posduif's roles on a server, and check that its settings suit its engines"
complete -c posduif -n '__posduif_ends server' -a start -d "Start the embedded server, made first if there is none"
complete -c posduif -n '__posduif_ends server' -a stop -d "Stop the embedded server; its data stays, and the next command that needs it starts it again"
complete -c posduif -n '__posduif_ends server' -a status -d "Show whether the embedded server runs; exits with 1 when it does not"
complete -c posduif -n '__posduif_ends server' -a remove -d "Stop the embedded server and delete all its tenants and data, after --confirm embedded"
complete -c posduif -n '__posduif_is server list' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is server init' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is server init' -l engines -x -a '(__posduif_ask)' -d "Check for this many engines; by default one per tenant"
complete -c posduif -n '__posduif_is server init' -l close -d "Close the database postgres to all but posduif's roles, too"
complete -c posduif -n '__posduif_is server init' -l login -x -a '(__posduif_ask)' -d "Also create this login for administrators, which is no superuser; its password goes to ~/.pgpass"
complete -c posduif -n '__posduif_is server init' -l print-sql -d "Print the SQL for a superuser to run; change nothing"
complete -c posduif -n '__posduif_is server start' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is server start' -l listen -x -a '(__posduif_ask)' -d "Let engines on this machine in by TCP and password, such as 127.0.0.1:5433, from now on; or off"
complete -c posduif -n '__posduif_is server stop' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is server status' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is server remove' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is server remove' -l confirm -x -a '(__posduif_ask)' -d "The name of what is changed or destroyed, to confirm it"
complete -c posduif -n '__posduif_ends config' -a show -d "Print every setting in force; secrets are masked"
complete -c posduif -n '__posduif_ends config' -a init -d "Write a commented configuration file, to --config or the user's usual place; never over one that exists"
complete -c posduif -n '__posduif_is config show' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is config show' -l origin -d "Say where each value came from"
complete -c posduif -n '__posduif_is config init' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_is doctor' -a '(__posduif_ask)'
complete -c posduif -n '__posduif_ends completion' -a show -d "Print a shell's completion script"
complete -c posduif -n '__posduif_ends completion' -a install -d "Write the completion script where the shell looks for it; no start-up file is edited"
complete -c posduif -n '__posduif_ends completion' -a uninstall -d "Remove the completion script that `completion install` wrote"
complete -c posduif -n '__posduif_is completion show' -a 'bash zsh fish'
complete -c posduif -n '__posduif_is completion install' -a 'bash zsh fish'
complete -c posduif -n '__posduif_is completion uninstall' -a 'bash zsh fish'
complete -c posduif -n '__posduif_is version' -a '(__posduif_ask)'
