#!/bin/sh
# Appends one line about the release to a change log, once a call; a rollback takes the line out again.
#
# inputs:  file, text
# outputs: lines (how many the file has now)
#
# jq would read the request more comfortably; sed does where there is none, because the schema lets no quotes, backslashes or
# line breaks into the values.
set -eu

read -r request
field() { printf '%s' "$request" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }

verb="$(field verb)"
call="$(field call)"
file="$(field file)"
text="$(field text)"

done_already() { [ -f "$file" ] && grep -qF "[$call]" "$file"; }
succeeded() {
  printf '{"status":"succeeded","outputs":{"lines":%d},"message":"%s"}\n' "$(wc -l <"$file")" "$1"
}

case "$verb" in
check)
  if done_already; then
    succeeded "the line is there already"
  else
    printf '{"status":"failed","message":"not written yet"}\n'
  fi
  ;;
execute)
  if ! done_already; then
    printf '%s %s [%s]\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$text" "$call" >>"$file"
    echo "written to $file" >&2
  fi
  succeeded "written"
  ;;
undo)
  # The call whose line it is stands in `undo`; `call` is that of this request.
  undone="$(printf '%s' "$request" | sed -n 's/.*"undo":{"call":"\([^"]*\)".*/\1/p')"
  if [ -n "$undone" ] && [ -f "$file" ] && grep -qF "[$undone]" "$file"; then
    # Nobody may see half a file; grep says 1 when no line is left.
    cp -p "$file" "$file.new"
    grep -vF "[$undone]" "$file" >"$file.new" || [ $? -eq 1 ]
    mv "$file.new" "$file"
    echo "taken out of $file" >&2
  fi
  printf '{"status":"succeeded","message":"no line of that call is there"}\n'
  ;;
*)
  printf '{"status":"failed","message":"this plugin does not know the verb %s"}\n' "$verb"
  ;;
esac
