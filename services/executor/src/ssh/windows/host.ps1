# The far half of a Windows host. `serve` answers the near half, one line of JSON each way, and decides nothing; `run` is the
# runner of one task and outlives it. Texts of flows come as base64 and are never part of a command or of this script.
# Plain ASCII, for PowerShell 5.1 and later. The automatic variable for pipeline input must not stand here: PowerShell would
# then read standard input itself.
param(
    [Parameter(Mandatory = $true)][string]$Mode,
    [Parameter(Mandatory = $true)][string]$State,
    [Parameter(Mandatory = $true)][string]$Root,
    [string]$Self = '',
    [string]$Task = ''
)
Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$Utf8 = New-Object System.Text.UTF8Encoding $false
# The near half speaks every 5 s; a link that is silent for so long is dead.
$SilenceMs = 20000
# Of one task's output, more than this is counted and dropped.
$LogCap = 4194304
$LogPiece = 24576

function Get-Path([string]$Dir, [string]$Name) { [System.IO.Path]::Combine($Dir, $Name) }
function Get-Text([string]$Base64) { $Utf8.GetString([Convert]::FromBase64String($Base64)) }
function Get-Base64([string]$Text) { [Convert]::ToBase64String($Utf8.GetBytes($Text)) }
function Get-Now { [DateTime]::UtcNow.ToString('yyyy-MM-ddTHH:mm:ss.ffffffZ', [Globalization.CultureInfo]::InvariantCulture) }

# Whole and on disk, or as before.
function Write-Whole([string]$Path, [byte[]]$Bytes) {
    $new = $Path + '.new'
    $f = [System.IO.File]::Open($new, [System.IO.FileMode]::Create, [System.IO.FileAccess]::Write, [System.IO.FileShare]::None)
    try { $f.Write($Bytes, 0, $Bytes.Length); $f.Flush($true) } finally { $f.Dispose() }
    if ([System.IO.File]::Exists($Path)) {
        [System.IO.File]::Replace($new, $Path, [NullString]::Value)
    } else {
        [System.IO.File]::Move($new, $Path)
    }
}

# Cuts the file at $At and writes from there; on disk when it returns.
function Add-Durable([string]$Path, [long]$At, [byte[]]$Bytes) {
    $f = [System.IO.File]::Open($Path, [System.IO.FileMode]::OpenOrCreate, [System.IO.FileAccess]::ReadWrite, [System.IO.FileShare]::Read)
    try {
        if ($f.Length -lt $At) { throw "$Path has $($f.Length) bytes and should have $At" }
        $f.SetLength($At)
        [void]$f.Seek($At, [System.IO.SeekOrigin]::Begin)
        $f.Write($Bytes, 0, $Bytes.Length)
        $f.Flush($true)
    } finally { $f.Dispose() }
}

# At most $Max bytes from $From, as base64.
function Read-Part([string]$Path, [long]$From, [int]$Max) {
    if (-not [System.IO.File]::Exists($Path)) { return '' }
    $share = [System.IO.FileShare]::ReadWrite -bor [System.IO.FileShare]::Delete
    $f = [System.IO.File]::Open($Path, [System.IO.FileMode]::Open, [System.IO.FileAccess]::Read, $share)
    try {
        $size = [int][Math]::Max(0, [Math]::Min($Max, $f.Length - $From))
        if ($size -eq 0) { return '' }
        [void]$f.Seek($From, [System.IO.SeekOrigin]::Begin)
        $buffer = New-Object byte[] $size
        $have = 0
        while ($have -lt $size) {
            $n = $f.Read($buffer, $have, $size - $have)
            if ($n -le 0) { break }
            $have += $n
        }
        return [Convert]::ToBase64String($buffer, 0, $have)
    } finally { $f.Dispose() }
}

# The open lock, or nothing while somebody else has it. Every other failure is told: not to know is not "free".
function Open-Lock([string]$Path) {
    try {
        return [System.IO.File]::Open($Path, [System.IO.FileMode]::OpenOrCreate, [System.IO.FileAccess]::ReadWrite, [System.IO.FileShare]::None)
    } catch [System.IO.DirectoryNotFoundException] {
        throw
    } catch [System.IO.IOException] {
        return $null
    }
}

function Wait-Lock([string]$Path, [int]$Seconds) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $lock = Open-Lock $Path
        if ($null -ne $lock -or $clock.Elapsed.TotalSeconds -ge $Seconds) { return $lock }
        [System.Threading.Thread]::Sleep(100)
    }
}

function Get-TaskDir([string]$Id) {
    if ($Id -notmatch '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$') { throw 'this is not the id of a task' }
    Get-Path (Get-Path $State 'tasks') $Id
}

# ---- serve

function Get-Current {
    $item = Get-Item -LiteralPath (Get-Path $Root 'current') -ErrorAction SilentlyContinue
    if ($null -eq $item -or $null -eq $item.PSObject.Properties['Target']) { return '' }
    $to = @($item.Target)
    if ($to.Count -eq 0 -or -not $to[0]) { return '' }
    Split-Path -Leaf $to[0]
}

function Get-Facts {
    $os = Get-CimInstance -ClassName Win32_OperatingSystem
    @{
        boot     = $os.LastBootUpTime.ToUniversalTime().ToString('yyyy-MM-ddTHH:mm', [Globalization.CultureInfo]::InvariantCulture)
        os       = [string]$os.Caption
        arch     = [string]$env:PROCESSOR_ARCHITECTURE
        hostname = [Environment]::MachineName
        cores    = [Environment]::ProcessorCount
        memory   = [long]($os.TotalVisibleMemorySize / 1024)
        shell    = [string]$PSVersionTable.PSVersion
    }
}

# Processes of an SSH session end with it; those that WMI makes do not.
function Start-Runner([string]$Id) {
    $exe = (Get-Process -Id $PID).Path
    $line = '"{0}" -NoLogo -NoProfile -NonInteractive -ExecutionPolicy Bypass -File "{1}" -Mode run -State "{2}" -Root "{3}" -Task {4}' -f $exe, $Self, $State, $Root, $Id
    $made = Invoke-CimMethod -ClassName Win32_Process -MethodName Create -Arguments @{ CommandLine = $line; CurrentDirectory = $State }
    if ($made.ReturnValue -ne 0) { throw "WMI does not start a process: it answers $($made.ReturnValue)" }
}

function Invoke-Start($Ask) {
    $dir = Get-TaskDir $Ask.task
    [void][System.IO.Directory]::CreateDirectory($dir)
    Write-Whole (Get-Path $dir 'spec.json') ([Convert]::FromBase64String($Ask.spec))
    Start-Runner $Ask.task
    # Until it holds the lock, nobody could tell it from one that never came.
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    while ($clock.Elapsed.TotalSeconds -lt 15) {
        if ([System.IO.File]::Exists((Get-Path $dir 'exec.mark')) -or [System.IO.File]::Exists((Get-Path $dir 'exit.json'))) { break }
        [System.Threading.Thread]::Sleep(50)
    }
    @{ ok = $true }
}

function Invoke-Look($Ask) {
    $dir = Get-TaskDir $Ask.task
    $said = @{ ok = $true; there = $false; alive = $false; begun = $false; exit = ''; steps = ''; log = ''; error = '' }
    if (-not [System.IO.Directory]::Exists($dir)) { return $said }
    $said.there = $true
    $lock = Open-Lock (Get-Path $dir 'lock')
    if ($null -eq $lock) {
        $said.alive = $true
    } else {
        try {
            $said.begun = [System.IO.File]::Exists((Get-Path $dir 'exec.mark'))
            $said.exit = Read-Part (Get-Path $dir 'exit.json') 0 65536
            # A runner that comes later finds this, and does nothing.
            if (-not $said.begun -and -not $said.exit) { Write-Whole (Get-Path $dir 'void') ([byte[]]@(118)) }
        } finally { $lock.Dispose() }
        $said.error = Read-Part (Get-Path $dir 'runner.err') 0 4096
    }
    # After the lock: of a runner that is gone nothing more comes.
    $said.steps = Read-Part (Get-Path $dir 'steps') ([long]$Ask.steps) 262144
    $said.log = Read-Part (Get-Path $dir 'log') ([long]$Ask.log) 262144
    $said
}

function Invoke-Ask($Ask) {
    switch ($Ask.do) {
        'hello' {
            $tasks = Get-Path $State 'tasks'
            $names = @()
            if ([System.IO.Directory]::Exists($tasks)) {
                $names = @([System.IO.Directory]::GetDirectories($tasks) | ForEach-Object { [System.IO.Path]::GetFileName($_) })
            }
            $identity = Read-Part (Get-Path $State 'identity.json') 0 65536
            return @{ ok = $true; identity = $identity; tasks = ($names -join ' '); facts = (Get-Facts); current = (Get-Current) }
        }
        'journal' { return @{ ok = $true; data = (Read-Part (Get-Path $State 'journal') ([long]$Ask.from) 524288) } }
        'append' {
            if ($Ask.prepare) { $Ask.prepare.Split(' ') | ForEach-Object { [void][System.IO.Directory]::CreateDirectory((Get-TaskDir $_)) } }
            Add-Durable (Get-Path $State 'journal') ([long]$Ask.at) ([Convert]::FromBase64String($Ask.data))
            return @{ ok = $true }
        }
        'identity' { Write-Whole (Get-Path $State 'identity.json') ([Convert]::FromBase64String($Ask.data)); return @{ ok = $true } }
        'start' { return Invoke-Start $Ask }
        'look' { return Invoke-Look $Ask }
        'stop' {
            $dir = Get-TaskDir $Ask.task
            if ([System.IO.Directory]::Exists($dir)) { Write-Whole (Get-Path $dir 'abort') ([byte[]]@(97)) }
            return @{ ok = $true }
        }
        'forget' {
            $dir = Get-TaskDir $Ask.task
            if ([System.IO.Directory]::Exists($dir)) { [System.IO.Directory]::Delete($dir, $true) }
            return @{ ok = $true }
        }
        'ping' { return @{ ok = $true; current = (Get-Current) } }
        default { throw 'this version of the host script does not know the request' }
    }
}

function Send-Line([string]$Text) {
    $bytes = $Utf8.GetBytes($Text + "`n")
    $wlOut.Write($bytes, 0, $bytes.Length)
    $wlOut.Flush()
}

function Invoke-Serve {
    [void][System.IO.Directory]::CreateDirectory((Get-Path $Root 'releases'))
    # An earlier session whose link died lets go by itself.
    $lock = Wait-Lock (Get-Path $State 'session.lock') 30
    if ($null -eq $lock) { Send-Line 'WLPS1 busy'; return }
    try {
        $old = Get-ChildItem -LiteralPath (Get-Path $State 'bin') -Filter 'host-*' | Where-Object { $_.FullName -ne $Self }
        $old | Sort-Object LastWriteTime -Descending | Select-Object -Skip 2 | Remove-Item -ErrorAction SilentlyContinue
        Send-Line 'WLPS1 ready'
        while ($true) {
            $reading = $wlIn.ReadLineAsync()
            if (-not $reading.Wait($SilenceMs) -or $null -eq $reading.Result) { return }
            try {
                $said = Invoke-Ask (ConvertFrom-Json $reading.Result)
            } catch {
                $said = @{ ok = $false; error = (Get-Base64 ([string]$_.Exception.Message)) }
            }
            Send-Line (ConvertTo-Json $said -Compress -Depth 4)
        }
    } finally { $lock.Dispose() }
}

# ---- run

function Write-Log([int]$Step, [string]$Stream, [byte[]]$Bytes, [int]$Count) {
    $script:LogSeen += $Count
    if ($script:LogSeen - $script:LogDropped -gt $LogCap) {
        if ($script:LogDropped -eq 0) {
            $note = $Utf8.GetBytes("[more output than $LogCap bytes: the rest is not kept]`n")
            Write-Piece $Step 'note' $note 0 $note.Length
        }
        $script:LogDropped += $Count
        return
    }
    for ($at = 0; $at -lt $Count; $at += $LogPiece) { Write-Piece $Step $Stream $Bytes $at ([Math]::Min($LogPiece, $Count - $at)) }
}

function Write-Piece([int]$Step, [string]$Stream, [byte[]]$Bytes, [int]$From, [int]$Count) {
    $line = '{{"step":{0},"stream":"{1}","at":"{2}","data":"{3}"}}' -f $Step, $Stream, (Get-Now), [Convert]::ToBase64String($Bytes, $From, $Count)
    $out = $Utf8.GetBytes($line + "`n")
    $script:Log.Write($out, 0, $out.Length)
    $script:Log.Flush()
}

function Write-Note([int]$Step, [string]$Text) {
    $bytes = $Utf8.GetBytes($Text + "`n")
    Write-Log $Step 'note' $bytes $bytes.Length
}

function Stop-Tree($Process) {
    # PowerShell 5.1 would throw for what a program says on standard error.
    $ErrorActionPreference = 'Continue'
    & taskkill.exe /T /F /PID $Process.Id 2>&1 | Out-Null
    try { if (-not $Process.HasExited) { $Process.Kill() } } catch [System.InvalidOperationException] { return }
}

# How it came out: outcome, exit code, message.
function Invoke-Script([int]$Index, $Step, [string]$Dir) {
    # With a byte order mark, or PowerShell 5.1 reads it in the code page of the machine.
    $file = Get-Path $Dir "step-$Index.ps1"
    [System.IO.File]::WriteAllText($file, (Get-Text $Step.script), (New-Object System.Text.UTF8Encoding $true))
    $info = New-Object System.Diagnostics.ProcessStartInfo
    $info.FileName = Get-Text $Step.interpreter
    $info.Arguments = '-NoLogo -NoProfile -NonInteractive -ExecutionPolicy Bypass -File "{0}"' -f $file
    $info.UseShellExecute = $false
    $info.CreateNoWindow = $true
    $info.RedirectStandardInput = $true
    $info.RedirectStandardOutput = $true
    $info.RedirectStandardError = $true
    $current = Get-Path $Root 'current'
    $cwd = Get-Text $Step.cwd
    if ($cwd) { $info.WorkingDirectory = Get-Path $Root $cwd }
    elseif ([System.IO.Directory]::Exists($current)) { $info.WorkingDirectory = $current }
    else { $info.WorkingDirectory = $Root }
    foreach ($pair in @($Step.env)) { $info.EnvironmentVariables[(Get-Text $pair.k)] = Get-Text $pair.v }
    $p = [System.Diagnostics.Process]::Start($info)
    $p.StandardInput.Close()
    $open = New-Object System.Collections.ArrayList
    foreach ($name in @('out', 'err')) {
        $stream = $p.StandardOutput.BaseStream
        if ($name -eq 'err') { $stream = $p.StandardError.BaseStream }
        $buffer = New-Object byte[] 16384
        [void]$open.Add(@{ name = $name; stream = $stream; buffer = $buffer; read = $stream.ReadAsync($buffer, 0, $buffer.Length) })
    }
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $stopped = ''
    $gone = -1.0
    $last = ''
    while ($open.Count -gt 0) {
        [System.Threading.Tasks.Task[]]$reads = @($open | ForEach-Object { $_.read })
        $n = [System.Threading.Tasks.Task]::WaitAny($reads, 200)
        if ($n -ge 0) {
            $from = $open[$n]
            $count = 0
            if ($from.read.Status -eq [System.Threading.Tasks.TaskStatus]::RanToCompletion) { $count = $from.read.Result }
            if ($count -le 0) {
                $open.RemoveAt($n)
            } else {
                Write-Log $Index $from.name $from.buffer $count
                $lines = @($Utf8.GetString($from.buffer, 0, $count).Split("`n") | Where-Object { $_.Trim() })
                if ($lines.Count -gt 0) { $last = $lines[$lines.Count - 1].Trim() }
                $from.read = $from.stream.ReadAsync($from.buffer, 0, $from.buffer.Length)
            }
        }
        if (-not $stopped) {
            if ($clock.Elapsed.TotalSeconds -ge $Step.timeout_s) { $stopped = 'timed_out' }
            elseif (-not $Step.always -and [System.IO.File]::Exists((Get-Path $Dir 'abort'))) { $stopped = 'cancelled' }
            if ($stopped) { Stop-Tree $p }
        }
        # What it left behind may hold the pipes for ever.
        if ($p.HasExited) {
            if ($gone -lt 0) { $gone = $clock.Elapsed.TotalSeconds }
            elseif ($clock.Elapsed.TotalSeconds - $gone -gt 5) { break }
        }
    }
    # It may close its output and go on.
    while (-not $p.WaitForExit(200)) {
        if (-not $stopped) {
            if ($clock.Elapsed.TotalSeconds -ge $Step.timeout_s) { $stopped = 'timed_out' }
            elseif (-not $Step.always -and [System.IO.File]::Exists((Get-Path $Dir 'abort'))) { $stopped = 'cancelled' }
            if ($stopped) { Stop-Tree $p; $gone = $clock.Elapsed.TotalSeconds }
        } elseif ($clock.Elapsed.TotalSeconds - $gone -gt 30) {
            # A report would say that nothing of it runs any more, and that is not known.
            throw 'a step does not end although it was killed'
        }
    }
    if ($stopped -eq 'timed_out') { return @{ outcome = $stopped; code = $null; message = 'took longer than its timeout' } }
    if ($stopped) { return @{ outcome = $stopped; code = $null; message = 'stopped on request' } }
    if ($p.ExitCode -eq 0) { return @{ outcome = 'succeeded'; code = 0; message = '' } }
    $message = "exited with code $($p.ExitCode)"
    if ($last) { $message += ': ' + $last.Substring(0, [Math]::Min(500, $last.Length)) }
    @{ outcome = 'failed'; code = $p.ExitCode; message = $message }
}

# One question; nothing when the answer is as expected, else why it is not.
function Get-Complaint($Step, [string]$Url, [string]$Expect) {
    try {
        $ask = [System.Net.WebRequest]::Create($Url)
        $ask.AllowAutoRedirect = $false
        $ask.Proxy = $null
        $ask.Timeout = 10000
        $ask.ReadWriteTimeout = 10000
        $answer = $null
        try { $answer = $ask.GetResponse() } catch {
            # PowerShell wraps what a method throws. An answer of 4xx and 5xx comes as an exception, too.
            $e = $_.Exception
            while ($null -ne $e.InnerException -and $e -isnot [System.Net.WebException]) { $e = $e.InnerException }
            if ($e -isnot [System.Net.WebException] -or $null -eq $e.Response) { return 'cannot be asked: ' + $e.Message }
            $answer = $e.Response
        }
        try {
            $status = [int]$answer.StatusCode
            $fits = $status -eq $Step.status
            if ($Step.status -eq 0) { $fits = $status -ge 200 -and $status -lt 300 }
            if (-not $fits) { return "answered $status" }
            if (-not $Expect) { return '' }
            $reader = New-Object System.IO.StreamReader($answer.GetResponseStream(), $Utf8)
            $buffer = New-Object char[] 1048576
            $have = $reader.ReadBlock($buffer, 0, $buffer.Length)
            $body = [string]::new($buffer, 0, $have)
            if ($body.Contains($Expect)) { return '' }
            return "answered $status, but its body does not hold the expected text"
        } finally { $answer.Close() }
    } catch {
        return 'cannot be asked: ' + $_.Exception.Message
    }
}

function Invoke-Check([int]$Index, $Step, [string]$Dir) {
    [System.Net.ServicePointManager]::SecurityProtocol = [System.Net.ServicePointManager]::SecurityProtocol -bor 3072
    $url = Get-Text $Step.url
    $expect = Get-Text $Step.expect
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $limit = [Math]::Min($Step.within_ms, 1000 * $Step.timeout_s)
    $pause = [Math]::Min(25, $Step.interval_ms)
    $tries = 0
    $before = ''
    while ($true) {
        $tries++
        $why = Get-Complaint $Step $url $expect
        if (-not $why) {
            Write-Note $Index "$url answered as expected, try $tries"
            return @{ outcome = 'succeeded'; code = $null; message = '' }
        }
        if ($why -ne $before) { Write-Note $Index "$url $why"; $before = $why }
        if (-not $Step.always -and [System.IO.File]::Exists((Get-Path $Dir 'abort'))) {
            return @{ outcome = 'cancelled'; code = $null; message = 'stopped on request' }
        }
        if ($clock.ElapsedMilliseconds + $pause -ge $limit) {
            return @{ outcome = 'failed'; code = $null; message = "$url $why; tried $tries times" }
        }
        [System.Threading.Thread]::Sleep($pause)
        $pause = [Math]::Max(1, [Math]::Min(2 * $pause, $Step.interval_ms))
    }
}

function Write-Step([string]$Dir, [int]$Index, $Done, [string]$From) {
    $code = 'null'
    if ($null -ne $Done.code) { $code = [string]$Done.code }
    $line = '{{"index":{0},"outcome":"{1}","code":{2},"from":"{3}","to":"{4}","message":"{5}"}}' -f $Index, $Done.outcome, $code, $From, (Get-Now), (Get-Base64 $Done.message)
    $file = Get-Path $Dir 'steps'
    $at = 0
    if ([System.IO.File]::Exists($file)) { $at = (New-Object System.IO.FileInfo $file).Length }
    Add-Durable $file $at ($Utf8.GetBytes($line + "`n"))
}

function Write-Exit([string]$Dir, [string]$Outcome) {
    $line = '{{"outcome":"{0}","log_bytes":{1},"log_dropped":{2}}}' -f $Outcome, $script:LogSeen, $script:LogDropped
    Write-Whole (Get-Path $Dir 'exit.json') ($Utf8.GetBytes($line))
}

function Invoke-Run([string]$Dir) {
    $script:LogSeen = 0
    $script:LogDropped = 0
    if ([System.IO.File]::Exists((Get-Path $Dir 'abort'))) { Write-Exit $Dir 'fenced'; return }
    $spec = ConvertFrom-Json ([System.IO.File]::ReadAllText((Get-Path $Dir 'spec.json'), $Utf8))
    # Programs that the steps start write in the code page of this console.
    try { [Console]::OutputEncoding = $Utf8 } catch { Write-Verbose 'there is no console' }
    $script:Log = [System.IO.File]::Open((Get-Path $Dir 'log'), [System.IO.FileMode]::Create, [System.IO.FileAccess]::Write, [System.IO.FileShare]::Read)
    Write-Whole (Get-Path $Dir 'exec.mark') ([byte[]]@(109))
    $index = -1
    $failed = $false
    $cancelled = $false
    $left = $false
    foreach ($step in @($spec.steps)) {
        $index++
        $stop = [System.IO.File]::Exists((Get-Path $Dir 'abort'))
        if ($index -lt $spec.start_at) { continue }
        if (($failed -or $stop) -and -not $step.always) { $left = $true; continue }
        $from = Get-Now
        Write-Note $index ('{0} ({1}) starts' -f (Get-Text $step.id), $step.kind)
        try {
            if ($step.kind -eq 'script') { $done = Invoke-Script $index $step $Dir } else { $done = Invoke-Check $index $step $Dir }
        } catch [System.ComponentModel.Win32Exception] {
            $done = @{ outcome = 'failed'; code = $null; message = 'cannot be started: ' + $_.Exception.Message }
        }
        Write-Note $index ('{0} {1} {2}' -f (Get-Text $step.id), $done.outcome, $done.message)
        if ($done.outcome -ne 'succeeded') { $failed = $true }
        if ($done.outcome -eq 'cancelled') { $cancelled = $true }
        Write-Step $Dir $index $done $from
    }
    $script:Log.Flush($true)
    if ($cancelled) { Write-Exit $Dir 'cancelled' }
    elseif ($failed) { Write-Exit $Dir 'failed' }
    elseif ($left) { Write-Exit $Dir 'cancelled' }
    else { Write-Exit $Dir 'succeeded' }
}

if ($Mode -eq 'serve') {
    Invoke-Serve
} elseif ($Mode -eq 'run') {
    $dir = Get-TaskDir $Task
    $lock = Wait-Lock (Get-Path $dir 'lock') 10
    if ($null -eq $lock) { exit 3 }
    try {
        # An INTENT is carried out once, and not after somebody was told that it was not.
        $over = @('void', 'exec.mark', 'exit.json') | Where-Object { [System.IO.File]::Exists((Get-Path $dir $_)) }
        if (-not $over) { Invoke-Run $dir }
    } catch {
        [System.IO.File]::WriteAllText((Get-Path $dir 'runner.err'), [string]$_.Exception.Message, $Utf8)
        exit 4
    } finally { $lock.Dispose() }
} else {
    throw 'the mode is serve or run'
}
