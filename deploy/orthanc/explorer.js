// The flag of ich_node and a button on the page of a study in Orthanc Explorer.
(function () {
  'use strict';

  var COLORS = { STAT: '#b00020', HIGH: '#b36b00', MEDIUM: '#1f5f8b', ROUTINE: '#4a4a4a' };

  function studyId() {
    return $.mobile.pageData ? $.mobile.pageData.uuid : undefined;
  }

  function show(box, answer) {
    var flag = box.find('.ich-flag');
    var known = answer && answer.priority;
    flag.text(known ? 'ICH: ' + answer.priority : 'ICH: not known')
      .css('background', known ? COLORS[answer.priority] || '#4a4a4a' : '#4a4a4a');
    box.find('.ich-words').text(answer ? answer.words : 'The plugin did not answer.');
  }

  function ask(box) {
    var id = studyId();
    if (!id) { return; }
    $.ajax({ url: '../ich-node/studies/' + id, cache: false, dataType: 'json' })
      .done(function (answer) { if (id === studyId()) { show(box, answer); } })
      .fail(function () { show(box, null); });
  }

  function readAgain(box) {
    var id = studyId();
    if (!id || !window.confirm('Have the images of this study read again?')) { return; }
    $.ajax({ url: '../ich-node/studies/' + id + '/reprocess', type: 'POST', data: '{}', dataType: 'json' })
      .done(function (answer) { box.find('.ich-words').text(answer.words); })
      .fail(function (request) {
        var words = 'The plugin did not answer.';
        try { words = JSON.parse(request.responseText).words || words; } catch (error) { /* no JSON */ }
        box.find('.ich-words').text(words);
      });
  }

  $(document).on('pagebeforecreate', '#study', function () {
    var box = $('<div>').attr('id', 'ich-node').css({ margin: '1em 0' });
    box.append($('<span>').addClass('ich-flag').css({
      color: '#fff', padding: '0.3em 0.8em', 'font-weight': 'bold', 'border-radius': '0.3em', 'text-shadow': 'none'
    }));
    box.append($('<p>').addClass('ich-words').attr('role', 'status').css({ 'white-space': 'normal' }));
    var button = $('<a>').attr({ href: '#', id: 'ich-read-again', 'data-role': 'button', 'data-icon': 'refresh' })
      .text('ICH: read again');
    button.on('click', function (event) { event.preventDefault(); readAgain(box); });
    box.append(button);
    box.insertBefore($('#study-delete').parent().parent());
  });

  $(document).on('pageshow', '#study', function () { ask($('#ich-node')); });
  window.setInterval(function () {
    if ($.mobile.activePage && $.mobile.activePage.attr('id') === 'study') { ask($('#ich-node')); }
  }, 15000);
}());
